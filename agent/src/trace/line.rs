//! An event as a line: of a table for a person, or of JSON for a program.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use probes::Event;
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::Subject;
use crate::{enrich::names::Owner, views::who::Who};

/// The metric of `disk` that runs at the device.
const AT_DEVICE: usize = 1;

/// An event, and names for what it has numbers of.
pub(super) struct Line<'a> {
    pub(super) event: &'a Event,
    pub(super) who: &'a Who,
    pub(super) device: Option<String>,
}

/// The head of the table.
pub(super) fn head(subject: Subject, closed: bool) -> String {
    match subject {
        Subject::Tcp if closed => closed_row([
            "TIME", "PID", "COMM", "ROLE", "LOCAL", "PEER", "RECEIVED", "SENT", "MS", "OUTCOME",
            "WORKLOAD",
        ]),
        Subject::Tcp => tcp_row([
            "TIME", "PID", "COMM", "ROLE", "LOCAL", "PEER", "MS", "OUTCOME", "WORKLOAD",
        ]),
        Subject::Disk => disk_row([
            "TIME",
            "PID",
            "COMM",
            "DEVICE",
            "OPERATION",
            "SECTOR",
            "BYTES",
            "MS",
            "DEVICE_MS",
            "OUTCOME",
            "WORKLOAD",
        ]),
        Subject::Gpu => gpu_row([
            "TIME", "PID", "COMM", "DEVICE", "EVENT", "MS", "OUTCOME", "WORKLOAD",
        ]),
    }
}

fn tcp_row(cells: [&str; 9]) -> String {
    let [time, pid, comm, role, local, peer, ms, outcome, workload] = cells;
    format!(
        "{time:<15} {pid:>7} {comm:<15} {role:<6} {local:<21} {peer:<21} {ms:>9} {outcome:<11} {workload}"
    )
}

fn closed_row(cells: [&str; 11]) -> String {
    let [
        time,
        pid,
        comm,
        role,
        local,
        peer,
        received,
        sent,
        ms,
        outcome,
        workload,
    ] = cells;
    format!(
        "{time:<15} {pid:>7} {comm:<15} {role:<6} {local:<21} {peer:<21} {received:>10} {sent:>10} {ms:>11} {outcome:<7} {workload}"
    )
}

fn disk_row(cells: [&str; 11]) -> String {
    let [
        time,
        pid,
        comm,
        device,
        operation,
        sector,
        bytes,
        ms,
        at_device,
        outcome,
        workload,
    ] = cells;
    format!(
        "{time:<15} {pid:>7} {comm:<15} {device:<8} {operation:<9} {sector:>11} {bytes:>8} {ms:>9} {at_device:>9} {outcome:<7} {workload}"
    )
}

fn gpu_row(cells: [&str; 8]) -> String {
    let [time, pid, comm, device, event, ms, outcome, workload] = cells;
    format!(
        "{time:<15} {pid:>7} {comm:<15} {device:<6} {event:<18} {ms:>10} {outcome:<7} {workload}"
    )
}

impl Line<'_> {
    /// As a row of the table.
    pub(super) fn row(&self, subject: Subject, closed: bool) -> String {
        let event = self.event;
        let detail = &event.detail;
        let time = time_of_day(event.ended);
        let (pid, comm) = match &event.process {
            Some((pid, comm)) => (pid.to_string(), plain(comm)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let duration = milliseconds(event.duration_ns);
        let workload = workload(self.who.owner());
        let (_, what) = detail.what;
        match subject {
            Subject::Tcp if closed => closed_row([
                &time,
                &pid,
                &comm,
                what,
                self.label("local"),
                self.label("peer"),
                &self.number("received_bytes"),
                &self.number("sent_bytes"),
                &duration,
                &detail.outcome,
                &workload,
            ]),
            Subject::Tcp => tcp_row([
                &time,
                &pid,
                &comm,
                what,
                self.label("local"),
                self.label("peer"),
                &duration,
                &detail.outcome,
                &workload,
            ]),
            Subject::Disk => disk_row([
                &time,
                &pid,
                &comm,
                self.device.as_deref().unwrap_or("-"),
                what,
                &self.number("sector"),
                &self.number("bytes"),
                &duration,
                &milliseconds(self.at_device()),
                &detail.outcome,
                &workload,
            ]),
            Subject::Gpu => gpu_row([
                &time,
                &pid,
                &comm,
                self.label("device"),
                what,
                &duration,
                &detail.outcome,
                &workload,
            ]),
        }
    }

    /// As an object.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    fn label(&self, name: &str) -> &str {
        let mut labels = self.event.detail.labels.iter();
        let found = labels.find(|(label, _)| *label == name);
        found.map_or("-", |(_, value)| value)
    }

    fn number(&self, name: &str) -> String {
        let mut numbers = self.event.detail.numbers.iter();
        let found = numbers.find(|(number, _)| *number == name);
        found.map_or_else(|| "-".to_owned(), |(_, value)| value.to_string())
    }

    fn at_device(&self) -> Option<u64> {
        let mut timings = self.event.detail.timings_ns.iter();
        let found = timings.find(|(metric, _)| *metric == AT_DEVICE)?;
        Some(found.1)
    }
}

/// What is not known is left out.
impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.event;
        let detail = &event.detail;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time", &time(event.ended))?;
        if let Some((pid, comm)) = &event.process {
            map.serialize_entry("pid", pid)?;
            map.serialize_entry("comm", comm)?;
        }
        for (name, value) in self.who.labels() {
            map.serialize_entry(name, value)?;
        }
        if let Some(device) = &self.device {
            map.serialize_entry("device", device)?;
        }
        let (name, value) = detail.what;
        map.serialize_entry(name, value)?;
        // The sectors stand in numbers, too.
        for (name, value) in detail.labels.iter().filter(|(name, _)| *name != "sectors") {
            map.serialize_entry(name, value)?;
        }
        for (name, value) in &detail.numbers {
            map.serialize_entry(name, value)?;
        }
        for (name, ns) in [
            ("duration_seconds", event.duration_ns),
            ("device_duration_seconds", self.at_device()),
        ] {
            if let Some(ns) = ns {
                map.serialize_entry(name, &seconds(ns))?;
            }
        }
        map.serialize_entry("outcome", &detail.outcome)?;
        map.end()
    }
}

#[allow(clippy::cast_precision_loss)] // of some 100 days and more
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The pod and its container, or the cgroup where there is none.
fn workload(owner: &Owner) -> String {
    let shown = match (owner.pod.as_str(), owner.container.as_str()) {
        ("", _) => owner.cgroup.clone(),
        (pod, "") => format!("{}/{pod}", owner.namespace),
        (pod, container) => format!("{}/{pod}/{container}", owner.namespace),
    };
    plain(&shown)
}

/// Text that others have chosen: nothing in it tells the terminal something else, or ends a line.
pub(super) fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(shown).collect()
}

fn milliseconds(ns: Option<u64>) -> String {
    let Some(ns) = ns else {
        return "-".to_owned();
    };
    let us = (ns + 500) / 1000;
    format!("{}.{:03}", us / 1000, us % 1000)
}

/// The time of day in UTC.
fn time_of_day(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, us) = (since.as_secs(), since.subsec_micros());
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{us:06}", seconds % 60)
}

/// By RFC 3339, in UTC.
fn time(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Years of 400 begin with March 1 of year 0: the leap day then is a year's last.
    let days = since.as_secs() / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    let mut text = String::new();
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{}Z", time_of_day(time));
    text
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use probes::{EventDetail, SeriesKey};

    use super::*;

    fn event(detail: EventDetail) -> Event {
        Event {
            ended: UNIX_EPOCH + Duration::new(1_795_446_006, 123_456_789),
            duration_ns: Some(1_234_567),
            key: SeriesKey::default(),
            process: Some((4321, "curl".to_owned())),
            detail,
        }
    }

    fn tcp() -> Event {
        event(EventDetail {
            timings_ns: vec![(0, 1_234_567)],
            labels: vec![
                ("peer", "10.0.0.7:443".to_owned()),
                ("local", "10.0.0.1:40000".to_owned()),
            ],
            what: ("role", "client"),
            outcome: "ok".into(),
            numbers: vec![("syn_retransmits", 0)],
        })
    }

    fn closed() -> Event {
        event(EventDetail {
            timings_ns: Vec::new(),
            labels: vec![
                ("peer", "10.0.0.7:443".to_owned()),
                ("local", "10.0.0.1:40000".to_owned()),
            ],
            what: ("role", "client"),
            outcome: "reset".into(),
            numbers: vec![
                ("received_bytes", 65_536),
                ("sent_bytes", 512),
                ("retransmits", 1),
            ],
        })
    }

    fn disk() -> Event {
        event(EventDetail {
            timings_ns: vec![(0, 1_234_567), (1, 1_000_000)],
            labels: vec![("sectors", "2048-2055".to_owned())],
            what: ("operation", "write"),
            outcome: "ok".into(),
            numbers: vec![("sector", 2048), ("bytes", 4096)],
        })
    }

    fn who(namespace: &str, pod: &str, container: &str, cgroup: &str) -> Who {
        Who::owned_by(Arc::new(Owner {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            cgroup: cgroup.to_owned(),
            ..Owner::default()
        }))
    }

    #[test]
    fn rows_stand_under_their_heads() {
        let mut event = tcp();
        let web = who("", "", "", "/web");
        let shown = |event: &Event, who: &Who| {
            let line = Line {
                event,
                who,
                device: None,
            };
            line.row(Subject::Tcp, false)
        };
        assert_eq!(
            head(Subject::Tcp, false),
            "TIME                PID COMM            ROLE   LOCAL                 PEER                         MS OUTCOME     WORKLOAD"
        );
        assert_eq!(
            shown(&event, &web),
            "15:00:06.123456    4321 curl            client 10.0.0.1:40000        10.0.0.7:443              1.235 ok          /web"
        );
        // Of a server, which nobody has a process or a time of.
        event.process = None;
        event.duration_ns = None;
        event.detail.what = ("role", "server");
        assert_eq!(
            shown(&event, &who("shop", "api-0", "api", "/kubepods/x")),
            "15:00:06.123456       - -               server 10.0.0.1:40000        10.0.0.7:443                  - ok          shop/api-0/api"
        );
    }

    #[test]
    fn rows_of_connections_that_close() {
        let line = Line {
            event: &closed(),
            who: &who("", "", "", "/web"),
            device: None,
        };
        assert_eq!(
            head(Subject::Tcp, true),
            "TIME                PID COMM            ROLE   LOCAL                 PEER                    RECEIVED       SENT          MS OUTCOME WORKLOAD"
        );
        assert_eq!(
            line.row(Subject::Tcp, true),
            "15:00:06.123456    4321 curl            client 10.0.0.1:40000        10.0.0.7:443               65536        512       1.235 reset   /web"
        );
        assert_eq!(
            line.json().unwrap(),
            r#"{"time":"2026-11-23T15:00:06.123456Z","pid":4321,"comm":"curl","cgroup":"/web","role":"client","peer":"10.0.0.7:443","local":"10.0.0.1:40000","received_bytes":65536,"sent_bytes":512,"retransmits":1,"duration_seconds":0.001234567,"outcome":"reset"}"#
        );
    }

    #[test]
    fn rows_of_disks() {
        let line = Line {
            event: &disk(),
            who: &who("shop", "db-0", "", "/kubepods/x"),
            device: Some("vda".to_owned()),
        };
        assert_eq!(
            head(Subject::Disk, false),
            "TIME                PID COMM            DEVICE   OPERATION      SECTOR    BYTES        MS DEVICE_MS OUTCOME WORKLOAD"
        );
        assert_eq!(
            line.row(Subject::Disk, false),
            "15:00:06.123456    4321 curl            vda      write            2048     4096     1.235     1.000 ok      shop/db-0"
        );
    }

    fn gap() -> Event {
        event(EventDetail {
            timings_ns: vec![(3, 1_234_567)],
            labels: vec![("device", "1".to_owned())],
            what: ("event", "gap"),
            outcome: "starved".into(),
            numbers: Vec::new(),
        })
    }

    /// A call that is seen to end, but not to begin.
    fn failed_call() -> Event {
        let mut failed = event(EventDetail {
            timings_ns: Vec::new(),
            labels: Vec::new(),
            what: ("call", "device_synchronize"),
            outcome: "700".into(),
            numbers: Vec::new(),
        });
        failed.duration_ns = None;
        failed
    }

    #[test]
    fn rows_of_gpus() {
        let who = who("train", "job-0", "", "/kubepods/x");
        let row = |event: &Event| {
            let line = Line {
                event,
                who: &who,
                device: None,
            };
            line.row(Subject::Gpu, false)
        };
        assert_eq!(
            head(Subject::Gpu, false),
            "TIME                PID COMM            DEVICE EVENT                      MS OUTCOME WORKLOAD"
        );
        assert_eq!(
            row(&gap()),
            "15:00:06.123456    4321 curl            1      gap                     1.235 starved train/job-0"
        );
        assert_eq!(
            row(&failed_call()),
            "15:00:06.123456    4321 curl            -      device_synchronize          - 700     train/job-0"
        );
    }

    #[test]
    fn objects_have_names_and_units_of_the_metrics() {
        let who = who("shop", "api-0", "", "/kubepods/x");
        let json = |event: &Event, device: Option<&str>| {
            let line = Line {
                event,
                who: &who,
                device: device.map(str::to_owned),
            };
            line.json().unwrap()
        };
        assert_eq!(
            json(&tcp(), None),
            r#"{"time":"2026-11-23T15:00:06.123456Z","pid":4321,"comm":"curl","namespace":"shop","pod":"api-0","cgroup":"/kubepods/x","role":"client","peer":"10.0.0.7:443","local":"10.0.0.1:40000","syn_retransmits":0,"duration_seconds":0.001234567,"outcome":"ok"}"#
        );
        assert_eq!(
            json(&disk(), Some("vda")),
            r#"{"time":"2026-11-23T15:00:06.123456Z","pid":4321,"comm":"curl","namespace":"shop","pod":"api-0","cgroup":"/kubepods/x","device":"vda","operation":"write","sector":2048,"bytes":4096,"duration_seconds":0.001234567,"device_duration_seconds":0.001,"outcome":"ok"}"#
        );
        assert_eq!(
            json(&gap(), None),
            r#"{"time":"2026-11-23T15:00:06.123456Z","pid":4321,"comm":"curl","namespace":"shop","pod":"api-0","cgroup":"/kubepods/x","event":"gap","device":"1","duration_seconds":0.001234567,"outcome":"starved"}"#
        );
        assert_eq!(
            json(&failed_call(), None),
            r#"{"time":"2026-11-23T15:00:06.123456Z","pid":4321,"comm":"curl","namespace":"shop","pod":"api-0","cgroup":"/kubepods/x","call":"device_synchronize","outcome":"700"}"#
        );
        // A flush has neither sectors nor a time at the device.
        let mut flush = disk();
        flush.process = None;
        flush.duration_ns = None;
        flush.detail = EventDetail {
            timings_ns: Vec::new(),
            labels: Vec::new(),
            what: ("operation", "flush"),
            outcome: "io".into(),
            numbers: Vec::new(),
        };
        assert_eq!(
            json(&flush, None),
            r#"{"time":"2026-11-23T15:00:06.123456Z","namespace":"shop","pod":"api-0","cgroup":"/kubepods/x","operation":"flush","outcome":"io"}"#
        );
    }

    #[test]
    fn what_others_call_themselves_stays_on_its_line() {
        let mut event = tcp();
        event.process = Some((1, "a\u{1b}[2J\nb".to_owned()));
        let line = Line {
            event: &event,
            who: &who("", "", "", "/x\ny"),
            device: None,
        };
        let row = line.row(Subject::Tcp, false);
        assert!(row.contains("a?[2J?b"), "{row}");
        assert!(row.ends_with("/x?y"), "{row}");
        assert!(line.json().unwrap().contains(r#""comm":"a\u001b[2J\nb""#));
    }

    #[test]
    fn days_have_their_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(time(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
