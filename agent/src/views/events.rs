//! Slow events: who and what is behind a bucket.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{
    history::{self, since_1970_ms},
    who::{Id, Who},
};
use crate::collect::SlowEvent;

/// Events that are shown at most, the slowest.
pub(crate) const EVENTS_MAX: usize = 500;

/// What `/api/v1/events` says; docs/page.md has what each part means.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    version: u8,
    now_ms: u64,
    /// The slowest first.
    events: Vec<Event>,
    /// Events beyond the most that are shown.
    left_out: usize,
}

#[derive(Debug, Serialize)]
struct Event {
    at_ms: u64,
    metric: &'static str,
    seconds: f64,
    id: Id,
    labels: Who,
    /// The further labels of its series.
    of: BTreeMap<&'static str, String>,
    exemplar: BTreeMap<&'static str, String>,
}

/// Those of all that `see` shows that are in the time and the metrics of the history.
pub(crate) fn answer(see: impl FnOnce(&mut dyn FnMut(&SlowEvent)), now: SystemTime) -> Answer {
    let since = now.checked_sub(history::span()).unwrap_or(now);
    let mut events = Vec::new();
    see(&mut |seen| {
        if !history::keeps(seen.metric.name) || seen.exemplar.time < since {
            return;
        }
        let who = Who::of(seen.labels);
        let own = seen.own.iter();
        let own = own.map(|(name, value)| (*name, (*value).to_owned()));
        let device = seen.labels.device.clone();
        events.push(Event {
            at_ms: since_1970_ms(seen.exemplar.time),
            metric: seen.metric.name,
            seconds: Duration::from_nanos(seen.exemplar.duration_ns).as_secs_f64(),
            id: who.id(),
            labels: who,
            of: own.chain(device.map(|device| ("device", device))).collect(),
            exemplar: seen.exemplar.labels.iter().cloned().collect(),
        });
    });
    events.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    let left_out = events.len().saturating_sub(EVENTS_MAX);
    events.truncate(EVENTS_MAX);
    Answer {
        version: 1,
        now_ms: since_1970_ms(now),
        events,
        left_out,
    }
}

#[cfg(test)]
mod tests {
    use probes::PROBES;

    use super::*;
    use crate::{collect::Exemplar, views::who::tests::labels};

    const MS: u64 = 1_000_000;

    fn exemplar(duration_ns: u64, ago: u64) -> Exemplar {
        Exemplar {
            bucket: 40,
            labels: vec![("pid", "7".to_owned()), ("sectors", "0-7".to_owned())],
            duration_ns,
            time: now() - Duration::from_secs(ago),
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(100_000)
    }

    /// Of a metric of the disk probe, by its number.
    fn answered(metric: usize, exemplars: &[Exemplar]) -> serde_json::Value {
        let disk = PROBES.iter().find(|probe| probe.name == "disk").unwrap();
        let mut labels = labels("/a", None);
        labels.device = Some("vda".to_owned());
        let answer = answer(
            |each| {
                for exemplar in exemplars {
                    each(&SlowEvent {
                        metric: &disk.metrics[metric],
                        labels: &labels,
                        own: &[("operation", "read")],
                        exemplar,
                    });
                }
            },
            now(),
        );
        serde_json::to_value(answer).unwrap()
    }

    #[test]
    fn the_slowest_come_first() {
        let found = answered(0, &[exemplar(5 * MS, 10), exemplar(250 * MS, 899)]);
        assert_eq!(
            found,
            serde_json::json!({
                "version": 1,
                "now_ms": 100_000_000,
                "events": [
                    {
                        "at_ms": 99_101_000, "metric": "sentry_disk_io_duration_seconds", "seconds": 0.25,
                        "id": "d9bea74fd50c250b", "labels": {"cgroup": "/a"},
                        "of": {"device": "vda", "operation": "read"},
                        "exemplar": {"pid": "7", "sectors": "0-7"},
                    },
                    {
                        "at_ms": 99_990_000, "metric": "sentry_disk_io_duration_seconds", "seconds": 0.005,
                        "id": "d9bea74fd50c250b", "labels": {"cgroup": "/a"},
                        "of": {"device": "vda", "operation": "read"},
                        "exemplar": {"pid": "7", "sectors": "0-7"},
                    },
                ],
                "left_out": 0,
            })
        );
    }

    #[test]
    fn what_the_history_does_not_have_is_left_out() {
        for (metric, ago) in [(0, 901), (1, 10)] {
            let found = answered(metric, &[exemplar(5 * MS, ago)]);
            assert_eq!(found["events"], serde_json::json!([]));
        }
    }

    #[test]
    fn there_is_a_most() {
        let count = u64::try_from(EVENTS_MAX).unwrap() + 3;
        let all: Vec<_> = (1..=count).map(|ms| exemplar(ms * MS, 1)).collect();
        let found = answered(0, &all);
        assert_eq!(found["events"].as_array().unwrap().len(), EVENTS_MAX);
        assert_eq!(found["events"][EVENTS_MAX - 1]["seconds"], 0.004);
        assert_eq!(found["left_out"], 3);
    }
}
