//! The pods of this node, from one watch of the API server.
//!
//! A thread of its own lists the pods once and then follows their changes. Whatever becomes of the
//! API server, what is known stays, and [`Watch::stats`] says how current it is.

mod client;
mod follow;
mod list;
mod pod;
mod pods;
#[cfg(test)]
mod tests;

use std::{
    env, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::time::sleep;

pub(crate) use self::{
    client::Reason,
    pod::Workload,
    pods::{PodNames, Pods},
};
use self::{
    client::{Access, chain, one_line},
    follow::{Follower, Timing},
};
use crate::collect::lock;

/// What to watch, and how.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The node whose pods are watched.
    pub(crate) node: String,
    /// How to reach the API server; `None`: by the service account of the pod that this is.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Labels of pods to show.
    pub(crate) labels: Vec<String>,
    /// Whether others may be asked for later.
    pub(crate) keeps_all_labels: bool,
    /// How long deleted pods are known.
    pub(crate) retention: Duration,
}

/// A setting that cannot work, or a thread that cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The node's name is none.
    #[error("{0:?} is no node's name: it has lower-case letters, digits, '-' and '.'")]
    Node(String),
    /// Nothing says how to reach the API server.
    #[error(
        "{0} is not set, so this is not a pod: --kubernetes.kubeconfig must say how to reach the \
         API server"
    )]
    NotInPod(&'static str),
    /// What says how to reach the API server cannot be used.
    #[error("{}: {reason}", path.display())]
    Access {
        /// A kubeconfig, or a file or the folder of the service account.
        path: PathBuf,
        /// In one line.
        reason: String,
    },
    /// No thread or no runtime.
    #[error("cannot start the watch of pods: {0}")]
    Start(#[from] io::Error),
}

impl Error {
    fn access(path: &Path, error: &dyn std::error::Error) -> Self {
        Self::Access {
            path: path.to_owned(),
            reason: one_line(&chain(error)),
        }
    }

    /// Whether another setting is what helps.
    pub(crate) fn is_bad_setting(&self) -> bool {
        !matches!(self, Self::Start(_))
    }
}

/// How long the start waits to learn whether what says how to reach the API server can be used: a
/// kubeconfig may name a program that gives credentials.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// How the watch is, as metrics show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatchStats {
    /// The pods were listed, and the watch that goes on from there is open. A silent one is well.
    pub(crate) up: bool,
    /// When the API server last confirmed what is known: with a list, an opened watch, a change or
    /// a bookmark. In seconds since 1970.
    pub(crate) last_sync: Option<u64>,
    /// Pods that are not deleted.
    pub(crate) pods: usize,
    /// In the order of [`Reason::ALL`].
    pub(crate) errors: [u64; Reason::ALL.len()],
}

/// The watch of this node's pods.
#[derive(Debug)]
pub(crate) struct Watch {
    pods: Mutex<Pods>,
    /// `pods` in it is not kept up.
    stats: Mutex<WatchStats>,
}

impl Watch {
    /// The names, for look-ups that don't take long. A thread that holds them must not ask again.
    pub(crate) fn pods(&self) -> MutexGuard<'_, Pods> {
        lock(&self.pods)
    }

    /// How the watch is.
    pub(crate) fn stats(&self) -> WatchStats {
        let pods = self.pods().len();
        WatchStats {
            pods,
            ..*lock(&self.stats)
        }
    }

    /// The API server has said what is, or that it says what changes from now on.
    fn confirm(&self, open: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut stats = lock(&self.stats);
        stats.last_sync = now.ok().map(|now| now.as_secs());
        stats.up |= open;
    }

    fn fail(&self, reason: Reason) {
        let mut stats = lock(&self.stats);
        stats.up = false;
        for (error, count) in Reason::ALL.iter().zip(&mut stats.errors) {
            *count += u64::from(*error == reason);
        }
    }
}

/// Starts to watch. It is no error when the API server is away or refuses: the watch tries again.
///
/// # Errors
/// When what says how to reach the API server is not there, or is not what it should be.
pub(crate) fn start(options: Options) -> Result<Arc<Watch>, Error> {
    let access = Access::new(options.kubeconfig, |name| env::var(name).ok())?;
    let retention = options.retention;
    let pods = Pods::new(options.labels, options.keeps_all_labels, retention);
    start_with(options.node, access, pods, retention, Timing::default())
}

fn start_with(
    node: String,
    access: Access,
    pods: Pods,
    retention: Duration,
    timing: Timing,
) -> Result<Arc<Watch>, Error> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if node.is_empty() || !node.chars().all(allowed) {
        return Err(Error::Node(node));
    }
    let watch = Arc::new(Watch {
        pods: Mutex::new(pods),
        stats: Mutex::new(WatchStats {
            up: false,
            last_sync: None,
            pods: 0,
            errors: [0; Reason::ALL.len()],
        }),
    });
    let (first, outcome) = mpsc::sync_channel(1);
    let shared = Arc::clone(&watch);
    thread::Builder::new()
        .name("kubernetes".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = first.send(Err(error.into()));
                    return;
                }
            };
            runtime.spawn(forget(Arc::downgrade(&shared), retention));
            let follower = Follower::new(runtime, shared, node, access, timing);
            let usable = follower.check();
            let starts = usable.is_ok();
            // Who waits no longer has gone on without, and this tries again.
            if first.send(usable).is_err() || starts {
                follower.follow();
            }
        })?;
    match outcome.recv_timeout(CHECK_PATIENCE) {
        Ok(usable) => usable.map(|()| watch),
        Err(RecvTimeoutError::Timeout) => Ok(watch),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("its thread has ended").into()),
    }
}

/// Forgets deleted pods in time, whether there is news or not.
async fn forget(watch: Weak<Watch>, retention: Duration) {
    let interval = (retention / 4).clamp(Duration::from_millis(50), Duration::from_secs(10));
    loop {
        sleep(interval).await;
        let Some(watch) = watch.upgrade() else {
            return;
        };
        watch.pods().forget(Instant::now());
    }
}
