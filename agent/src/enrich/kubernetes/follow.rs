//! Listing, following, and what to do when that fails.

use std::{
    collections::hash_map::RandomState,
    convert::Infallible,
    hash::BuildHasher,
    io::Read,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::core::{
    Request, WatchEvent,
    params::{ListParams, WatchParams},
};
use tokio::{runtime::Runtime, time::sleep};

use super::{
    Error, Reason, Watch,
    client::{Access, Connection, Failure, chain},
    list,
    pod::Pod,
};

const PATH: &str = "/api/v1/pods";

/// A watch that ends so soon, without an event, has failed.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// How patient the watch is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// How long an answer may take, and the next part of a list.
    pub(super) answer: Duration,
    /// How long an open watch may be silent. The server ends each after 290 s, and bookmarks come
    /// every minute.
    pub(super) silence: Duration,
    /// The wait after the first failure; it doubles with each that follows.
    pub(super) first_wait: Duration,
    pub(super) longest_wait: Duration,
    /// A watch that was open for so long was well: the waits start anew.
    pub(super) steady: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(300),
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            steady: Duration::from_secs(10),
        }
    }
}

/// What the thread of the watch has.
pub(super) struct Follower {
    runtime: Runtime,
    watch: Arc<Watch>,
    node: String,
    access: Access,
    timing: Timing,
}

/// How far the watch has come.
#[derive(Debug, Default)]
struct Progress {
    /// The version from which a watch can go on.
    version: Option<String>,
    /// When the watch was opened that is open.
    opened: Option<Instant>,
    /// What the log said last: that the pods are known, or why not.
    logged: Option<Result<(), Reason>>,
}

impl Follower {
    pub(super) fn new(
        runtime: Runtime,
        watch: Arc<Watch>,
        node: String,
        access: Access,
        timing: Timing,
    ) -> Self {
        Self {
            runtime,
            watch,
            node,
            access,
            timing,
        }
    }

    /// Whether what says how to reach the API server can be used.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.access.client(&self.runtime).map(drop)
    }

    /// Follows the pods until nobody else has the watch when it fails.
    pub(super) fn follow(self) {
        let mut progress = Progress::default();
        let mut wait = self.timing.first_wait;
        while Arc::strong_count(&self.watch) > 1 {
            let Err(failure) = self.session(&mut progress);
            self.watch.fail(failure.reason);
            if progress.logged != Some(Err(failure.reason)) {
                progress.logged = Some(Err(failure.reason));
                let (node, reason) = (&self.node, failure.reason.code());
                tracing::warn!(
                    node,
                    reason,
                    "pods are not followed, names are as they were: {}",
                    failure.detail
                );
            }
            let opened = progress.opened.take();
            // A watch that broke goes on where it was. After anything else the API server may not
            // be the one that it was, and the pods are listed anew, from its cache.
            let broke = matches!(failure.reason, Reason::Unreachable | Reason::Timeout);
            if opened.is_none() || !broke {
                progress.version = None;
            }
            if opened.is_some_and(|opened| opened.elapsed() >= self.timing.steady) {
                wait = self.timing.first_wait;
            }
            self.runtime.block_on(async { sleep(jitter(wait)).await });
            wait = (wait * 2).min(self.timing.longest_wait);
        }
    }

    /// Follows the pods with one client until that fails.
    fn session(&self, progress: &mut Progress) -> Result<Infallible, Failure> {
        let client = self
            .access
            .client(&self.runtime)
            .map_err(|error| Failure::new(Reason::Other, &error.to_string()))?;
        let connection = Connection::new(&self.runtime, client, self.timing.answer);
        loop {
            let version = match progress.version.take() {
                Some(version) => version,
                None => self.list(&connection)?,
            };
            let request = Request::new(PATH)
                .watch(&WatchParams::default().fields(&self.selector()), &version);
            progress.version = Some(version);
            let request = request.map_err(|error| Failure::new(Reason::Other, &chain(&error)))?;
            let body = connection.open(request, self.timing.silence)?;
            let opened = *progress.opened.insert(Instant::now());
            self.watch.confirm(true);
            if progress.logged != Some(Ok(())) {
                progress.logged = Some(Ok(()));
                let pods = self.watch.pods().len();
                tracing::info!(node = self.node, pods, "pods are followed");
            }
            let eventful = self.events(body, &mut progress.version)?;
            if !eventful && opened.elapsed() < TOO_SHORT {
                return Err(Failure::new(Reason::Other, "the watch ended at once"));
            }
            progress.opened = None;
        }
    }

    fn selector(&self) -> String {
        format!("spec.nodeName={}", self.node)
    }

    /// Takes in all pods, and gives the version that they had.
    fn list(&self, connection: &Connection<'_>) -> Result<String, Failure> {
        // Version 0: whatever the API server has in its cache. Asking for pages would make it ask
        // its store.
        let mut params = ListParams::default().fields(&self.selector()).at("0");
        self.watch.pods().begin_list();
        let version = loop {
            let request = Request::new(PATH)
                .list(&params)
                .map_err(|error| Failure::new(Reason::Other, &chain(&error)))?;
            let body = connection.open(request, self.timing.answer)?;
            let page = list::read(body, |pod| self.watch.pods().apply(&pod, Instant::now()))
                .map_err(|error| Failure::of_body(&error))?;
            if page.r#continue.is_empty() {
                break page.resource_version;
            }
            params.continue_token = Some(page.r#continue);
        };
        self.watch.pods().end_list(Instant::now());
        self.watch.confirm(false);
        probes::release_unused_memory();
        Ok(version)
    }

    /// Takes in what a watch tells until it ends as it should; false when that was nothing.
    fn events(&self, body: impl Read, version: &mut Option<String>) -> Result<bool, Failure> {
        let mut eventful = false;
        for event in serde_json::Deserializer::from_reader(body).into_iter() {
            let now = Instant::now();
            let seen = match event.map_err(|error| Failure::of_body(&error))? {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    let pod: Pod = pod;
                    self.watch.pods().apply(&pod, now);
                    pod.metadata.resource_version
                }
                WatchEvent::Deleted(pod) => {
                    // Its last status may name a container that no earlier one did.
                    let mut pods = self.watch.pods();
                    pods.apply(&pod, now);
                    pods.remove(&pod.metadata.uid, now);
                    pod.metadata.resource_version
                }
                WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version,
                WatchEvent::Error(status) => {
                    return Err(Failure::of_status(status.code, &status.message));
                }
            };
            self.watch.confirm(true);
            if !seen.is_empty() {
                *version = Some(seen);
            }
            eventful = true;
        }
        Ok(eventful)
    }
}

/// Between half of a wait and all of it, so that the agents of many nodes don't come back at once.
fn jitter(wait: Duration) -> Duration {
    // Each state is seeded at random.
    let random = RandomState::new().hash_one(0) % 1024;
    wait / 2 + wait / 2 * u32::try_from(random).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_spread() {
        let wait = Duration::from_secs(30);
        let waits: Vec<_> = (0..100).map(|_| jitter(wait)).collect();
        assert!(waits.iter().all(|w| (wait / 2..=wait).contains(w)));
        assert!(waits.iter().any(|other| *other != waits[0]));
    }
}
