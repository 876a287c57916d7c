//! `--web.config.file`: who may connect, in the format of Prometheus' exporter-toolkit, read anew when files change.

mod auth;
mod format;
mod tls;

use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::ServerConfig;
use tokio::sync::Semaphore;

use super::HttpStats;
use crate::config::one_line;
use auth::{Authenticator, Users};
use format::{ClientAuth, Pem, PemSource, Rate, Settings};

pub(crate) use auth::{Refusal, network};
pub(crate) use tls::HandshakeFailure;

/// How often files are looked at, at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The largest file that is read: thousands of users, or hundreds of authorities.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file that cannot be used, in one line that names the place and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WebConfigError(String);

/// The file and what it says.
pub(crate) struct WebConfig {
    path: PathBuf,
    stats: Arc<HttpStats>,
    authenticator: Authenticator,
    in_force: Mutex<Arc<InForce>>,
    /// Files as they were when they were last read to the end. Held while they are.
    seen: Mutex<Vec<Seen>>,
    /// What is wrong with those that could not be.
    unread: Mutex<Option<WebConfigError>>,
    check_interval: Duration,
    checked: Mutex<Instant>,
    /// For the one that looks at the files.
    checking: Arc<Semaphore>,
}

/// What a file says, ready for use.
pub(crate) struct InForce {
    /// How to speak TLS; nothing for plain HTTP.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Headers of every answer to a request that could be read, where it has none of that name.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    users: Users,
    rate: Option<Rate>,
    /// When all requests of the rate's burst are allowed again.
    full: Mutex<Option<Instant>>,
    client_auth: ClientAuth,
    /// Whether only clients with certain names may come.
    names_clients: bool,
    notes: Vec<String>,
    warnings: Vec<String>,
}

/// What tells one state of a file from another; nothing if there is no such file.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

type Seen = (PathBuf, Stamp);

impl WebConfig {
    /// Reads the file and those that it names. Takes milliseconds, and is counted as a success.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn load(path: &Path, stats: Arc<HttpStats>) -> Result<Self, WebConfigError> {
        Self::load_checked_every(path, stats, CHECK_INTERVAL)
    }

    pub(super) fn load_checked_every(
        path: &Path,
        stats: Arc<HttpStats>,
        check_interval: Duration,
    ) -> Result<Self, WebConfigError> {
        let Read { seen, outcome, .. } = read(path);
        let in_force = outcome?;
        let authenticator = Authenticator::new().map_err(|_| {
            WebConfigError(format!(
                "web config file {}: the kernel gives no random numbers",
                path.display()
            ))
        })?;
        stats.web_config_read(Some(SystemTime::now()));
        Ok(Self {
            path: path.to_owned(),
            stats,
            authenticator,
            in_force: Mutex::new(Arc::new(in_force)),
            seen: Mutex::new(seen),
            unread: Mutex::default(),
            check_interval,
            checked: Mutex::new(Instant::now()),
            checking: Arc::new(Semaphore::new(1)),
        })
    }

    /// What is in force.
    pub(crate) fn current(&self) -> Arc<InForce> {
        Arc::clone(&lock(&self.in_force))
    }

    /// What is in force now that the files were looked at, which happens once a second at most, off the caller's
    /// thread. While another call waits for that, this one does not.
    pub(crate) async fn fresh(self: &Arc<Self>) -> Arc<InForce> {
        if lock(&self.checked).elapsed() >= self.check_interval
            && let Ok(permit) = Arc::clone(&self.checking).try_acquire_owned()
        {
            *lock(&self.checked) = Instant::now();
            let this = Arc::clone(self);
            // A file system that hangs hangs one thread, not one for each connection.
            let check = tokio::task::spawn_blocking(move || {
                this.reload_if_changed();
                drop(permit);
            });
            let _ = check.await;
        }
        self.current()
    }

    fn reload_if_changed(&self) {
        let changed = {
            let seen = lock(&self.seen);
            seen.iter().any(|(path, then)| stamp(path) != *then)
        };
        if changed {
            // The error is in the log, and counted.
            let _ = self.read_anew(false);
        }
    }

    /// Reads the files anew, whether or not they have changed. May take milliseconds, and logs what is in force then.
    ///
    /// # Errors
    /// What is wrong; then what was in force stays so.
    pub(crate) fn reload(&self) -> Result<(), WebConfigError> {
        self.read_anew(true)
    }

    /// Files that cannot be read are read again with the next look at them, whether or not they change until then: that
    /// is said once, unless `asked` for.
    fn read_anew(&self, asked: bool) -> Result<(), WebConfigError> {
        let mut seen = lock(&self.seen);
        let Read {
            seen: now_seen,
            is_whole,
            outcome,
        } = read(&self.path);
        let unread = outcome.as_ref().err().filter(|_| !is_whole).cloned();
        if is_whole {
            *seen = now_seen;
        }
        let known = std::mem::replace(&mut *lock(&self.unread), unread.clone());
        let is_known = unread.is_some() && unread == known;
        let outcome = outcome.and_then(|next| {
            self.current().may_become(&self.path, &next)?;
            Ok(next)
        });
        match outcome {
            Ok(next) => {
                tracing::info!("{} was read anew: {}", self.name(), next.summary());
                next.log_notes();
                *lock(&self.in_force) = Arc::new(next);
                self.stats.web_config_read(Some(SystemTime::now()));
                Ok(())
            }
            Err(error) => {
                // One who asked says it.
                if !asked && !is_known {
                    tracing::warn!("{error}; what was in force before stays so");
                }
                if asked || !is_known {
                    self.stats.web_config_read(None);
                }
                Err(error)
            }
        }
    }

    /// Whether the one who sends these headers from there is let in.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn admit(
        &self,
        in_force: &InForce,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<(), Refusal> {
        self.authenticator
            .admit(&in_force.users, headers, peer)
            .await
    }

    /// The files that were read.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        lock(&self.seen)
            .iter()
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// Says what is in force, at the start.
    pub(crate) fn log(&self) {
        let current = self.current();
        tracing::info!("{}: {}", self.name(), current.summary());
        current.log_notes();
    }

    fn name(&self) -> String {
        format!("web config file {}", self.path.display())
    }
}

impl InForce {
    /// Counts a request.
    ///
    /// # Errors
    /// How long it should wait, where there are too many.
    pub(crate) fn allow_request(&self) -> Result<(), Duration> {
        if let Some(Rate { interval, burst }) = self.rate {
            let mut full = lock(&self.full);
            *full = Some(auth::spend(*full, Instant::now(), interval, burst)?);
        }
        Ok(())
    }

    /// An empty file is read as one that lets everybody in. It may be one that somebody is about to write, so what
    /// keeps people out is not given up while the agent runs.
    fn may_become(&self, path: &Path, next: &Self) -> Result<(), WebConfigError> {
        let refuse = |problem: &str| {
            let path = path.display();
            Err(WebConfigError(format!("web config file {path}: {problem}")))
        };
        match (self.tls.is_some(), next.tls.is_some()) {
            (true, false) => {
                return refuse(
                    "tls_server_config is gone; allowed: with TLS as it was started, or a restart",
                );
            }
            (false, true) => {
                return refuse(
                    "tls_server_config has come; allowed: without TLS as it was started, or a restart",
                );
            }
            _ => {}
        }
        if !self.users.is_empty() && next.users.is_empty() {
            return refuse("basic_auth_users are gone; allowed: at least one, or a restart");
        }
        if self.client_auth.requires() > next.client_auth.requires() {
            return refuse(&format!(
                "client_auth_type has become {}; allowed: {} as it was, a stricter one, or a restart",
                next.client_auth.name(),
                self.client_auth.name()
            ));
        }
        if self.names_clients && !next.names_clients {
            return refuse("client_allowed_sans are gone; allowed: a list of them, or a restart");
        }
        Ok(())
    }

    /// In a few words, for a person.
    pub(crate) fn summary(&self) -> String {
        let clients = match self.client_auth {
            ClientAuth::None => "",
            ClientAuth::Request => ", certificates of clients are asked for and not verified",
            ClientAuth::RequireAny => ", certificates of clients are required and not verified",
            ClientAuth::VerifyIfGiven => ", certificates of clients are verified where shown",
            ClientAuth::RequireAndVerify => ", certificates of clients are required and verified",
        };
        let tls = if self.tls.is_some() { "TLS" } else { "no TLS" };
        let users = match self.users.count() {
            0 => "no passwords".to_owned(),
            1 => "1 user".to_owned(),
            count => format!("{count} users"),
        };
        format!("{tls}{clients}, {users}")
    }

    /// What has no effect or is dangerous, each in a line.
    pub(crate) fn notes(&self) -> impl Iterator<Item = &String> {
        self.warnings.iter().chain(&self.notes)
    }

    fn log_notes(&self) {
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
        for note in &self.notes {
            tracing::info!("{note}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of an attempt to read the files.
struct Read {
    seen: Vec<Seen>,
    /// Whether all that was looked at could be read, be it right or wrong.
    is_whole: bool,
    outcome: Result<InForce, WebConfigError>,
}

/// Reads the file at `path` and those that it names. Each is looked at before it is read, so that a change meanwhile
/// is one that is still to be seen.
fn read(path: &Path) -> Read {
    let mut seen = Vec::new();
    let mut is_whole = true;
    let outcome = in_force(path, |path| {
        seen.push((path.to_owned(), stamp(path)));
        let contents = contents(path);
        is_whole &= contents.is_ok();
        contents
    });
    Read {
        seen,
        is_whole,
        outcome: outcome.map_err(|line| WebConfigError(one_line(&line))),
    }
}

fn in_force(
    path: &Path,
    mut contents: impl FnMut(&Path) -> io::Result<Vec<u8>>,
) -> Result<InForce, String> {
    let unread = |place: &str, error: &io::Error| format!("{place}: cannot be read: {error}");
    let file = format!("web config file {}", path.display());
    let text = contents(path).map_err(|error| unread(&file, &error))?;
    let text =
        String::from_utf8(text).map_err(|_| format!("{file}: not text; allowed: YAML in UTF-8"))?;
    let Settings {
        tls,
        headers,
        users,
        rate,
        notes,
        warnings,
    } = format::parse(path, &text)?;
    let mut pem = |from: &Pem| match &from.source {
        PemSource::Inline(text) => Ok(text.clone().into_bytes()),
        PemSource::File(path) => contents(path)
            .map_err(|error| unread(&format!("{}: {}", from.place, path.display()), &error)),
    };
    let client_auth = tls.as_ref().map_or(ClientAuth::None, |tls| tls.client_auth);
    let names = tls.as_ref().map(|tls| tls.client_allowed_sans.is_some());
    Ok(InForce {
        tls: tls.map(|tls| tls::build(&tls, &mut pem)).transpose()?,
        headers,
        users: Users::new(users),
        rate,
        full: Mutex::default(),
        client_auth,
        names_clients: names.unwrap_or(false),
        notes,
        warnings,
    })
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    // To open a pipe could take for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut contents = Vec::new();
    fs::File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut contents)?;
    if contents.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "more than {MAX_FILE_BYTES} bytes"
        )));
    }
    Ok(contents)
}

/// Behind symbolic links, by which Kubernetes changes all files of a secret at once.
fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests;
