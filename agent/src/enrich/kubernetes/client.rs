//! How the API server is reached, and what it answers.

use std::{
    fmt::Write as _,
    io::{self, BufReader, Read},
    net::Ipv6Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};
use kube::{
    Client,
    client::{Body, ConfigExt},
    config::{Config, KubeConfigOptions, Kubeconfig},
};
use tokio::{runtime::Runtime, time::timeout};
use tower::{BoxError, Layer, ServiceExt, util::option_layer};

use super::Error;

/// Where the kubelet mounts the token of a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection is probed when it has been silent for as long as the first, as often as the last
/// says: a peer that vanished is noticed within a minute, a watch without news is left alone.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Characters of an error that are shown.
const DETAIL_CHARACTERS: usize = 300;

/// Bytes of an error's body that are read.
const STATUS_MAX: u64 = 16 << 10;

/// Where it is said how to reach the API server. It is read anew for each connection, so that new
/// certificates, tokens and addresses are taken up.
#[derive(Debug, Clone)]
pub(super) enum Access {
    Kubeconfig(PathBuf),
    ServiceAccount { folder: PathBuf, url: String },
}

impl Access {
    /// By a kubeconfig; without one, as the kubelet tells its pods.
    pub(super) fn new(
        kubeconfig: Option<PathBuf>,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, Error> {
        if let Some(path) = kubeconfig {
            return Ok(Self::Kubeconfig(path));
        }
        let required = |name| variable(name).ok_or(Error::NotInPod(name));
        let host = required("KUBERNETES_SERVICE_HOST")?;
        let port = required("KUBERNETES_SERVICE_PORT")?;
        let url = match host.parse::<Ipv6Addr>() {
            Ok(address) => format!("https://[{address}]:{port}"),
            Err(_) => format!("https://{host}:{port}"),
        };
        Ok(Self::ServiceAccount {
            folder: PathBuf::from(SERVICE_ACCOUNT),
            url,
        })
    }

    /// Reads it and makes a client, without connecting yet.
    pub(super) fn client(&self, runtime: &Runtime) -> Result<Client, Error> {
        let (path, config) = match self {
            Self::Kubeconfig(path) => (path, runtime.block_on(from_kubeconfig(path))?),
            Self::ServiceAccount { folder, url } => (folder, from_service_account(folder, url)?),
        };
        // Its tasks belong to the runtime.
        let _inside = runtime.enter();
        client(&config).map_err(|error| Error::access(path, &error))
    }
}

async fn from_kubeconfig(path: &Path) -> Result<Config, Error> {
    let refused = |error| Error::access(path, &error);
    let file = Kubeconfig::read_from(path).map_err(refused)?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options);
    let mut config = config.await.map_err(refused)?;
    if config.proxy_url.is_some() {
        return Err(Error::Access {
            path: path.to_owned(),
            reason: "proxy-url is not supported".to_owned(),
        });
    }
    // Else the system's authorities are looked for, and an image of nothing but the agent has none.
    if config.cluster_url.scheme_str() == Some("http") {
        config.root_cert.get_or_insert_default();
    }
    Ok(config)
}

fn from_service_account(folder: &Path, url: &str) -> Result<Config, Error> {
    let authority = folder.join("ca.crt");
    let cannot = |error: &dyn std::error::Error| Error::access(&authority, error);
    std::fs::metadata(&authority).map_err(|error| cannot(&error))?;
    let url = url.parse().map_err(|error| cannot(&error))?;
    let mut config = Config::new(url);
    // No other authority is trusted; the file is what counts, and is read again as it changes.
    config.root_cert = Some(Vec::new());
    config.root_cert_file = Some(authority);
    config.auth_info.token_file = Some(folder.join("token").display().to_string());
    Ok(config)
}

/// `kube`'s own way of making a client logs every failure as an error, and tries again by itself.
fn client(config: &Config) -> kube::Result<Client> {
    let (idle, interval, retries) = KEEPALIVE;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(idle));
    tcp.set_keepalive_interval(Some(interval));
    tcp.set_keepalive_retries(Some(retries));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build::<_, Body>(https)
        .map_err(BoxError::from);
    let service = config.extra_headers_layer()?.layer(http);
    let service = option_layer(config.auth_layer()?).layer(service);
    let service = config.base_uri_layer().layer(service);
    Ok(Client::new(service, config.default_namespace.as_str()))
}

/// Why the pods cannot be followed, as metrics show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No connection, or one that broke; TLS that fails.
    Unreachable,
    /// No answer in time, or silence for longer than a watch lasts.
    Timeout,
    /// 401: no valid credentials.
    Unauthorized,
    /// 403: no right to list and watch pods.
    Forbidden,
    /// 410: the version to go on from is too old; all pods are listed anew.
    Expired,
    /// Another answer.
    Other,
}

impl Reason {
    /// All of them, in the order of [`super::WatchStats::errors`].
    pub(crate) const ALL: [Self; 6] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Expired,
        Self::Other,
    ];

    /// The label's value.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Expired => "expired",
            Self::Other => "other",
        }
    }

    fn of(status: u16) -> Self {
        match status {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            408 | 504 => Self::Timeout,
            410 => Self::Expired,
            _ => Self::Other,
        }
    }
}

/// Why the pods cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// In one line.
    pub(super) detail: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, detail: &str) -> Self {
        Self {
            reason,
            detail: one_line(detail),
        }
    }

    /// What the API server answered instead.
    pub(super) fn of_status(code: u16, message: &str) -> Self {
        let status =
            StatusCode::from_u16(code).map_or_else(|_| code.to_string(), |c| c.to_string());
        Self::new(Reason::of(code), &format!("{status}: {message}"))
    }

    fn of_send(error: &kube::Error) -> Self {
        let reason = match error {
            kube::Error::Auth(_) => Reason::Unauthorized,
            error if timed_out(error) => Reason::Timeout,
            _ => Reason::Unreachable,
        };
        Self::new(reason, &chain(error))
    }

    /// Of a body that could not be read to its end, or is not what it should be.
    pub(super) fn of_body(error: &serde_json::Error) -> Self {
        let reason = match error.io_error_kind() {
            Some(io::ErrorKind::TimedOut) => Reason::Timeout,
            Some(_) => Reason::Unreachable,
            None if error.is_eof() => Reason::Unreachable,
            None => Reason::Other,
        };
        Self::new(reason, &chain(error))
    }
}

/// Whether the kernel gave up: nobody answered a connect, or the probes of a silent connection.
fn timed_out(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // It passes over what it wraps when asked for its source.
        let wrapped = error.get_ref();
        return error.kind() == io::ErrorKind::TimedOut
            || wrapped.is_some_and(|error| timed_out(error));
    }
    error.source().is_some_and(timed_out)
}

/// An error and its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    // What kube says first of any error of a connection.
    let text = text.strip_prefix("ServiceError: ").unwrap_or(&text);
    let mut text = text.to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            let _ = write!(text, ": {part}");
        }
        cause = error.source();
    }
    text
}

/// What a server or a file says goes into one line of bounded length.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(DETAIL_CHARACTERS).collect()
}

/// A request to one API server.
pub(super) struct Connection<'r> {
    runtime: &'r Runtime,
    client: Client,
    /// How long an answer may take, and a part of a list.
    limit: Duration,
}

impl<'r> Connection<'r> {
    pub(super) fn new(runtime: &'r Runtime, client: Client, limit: Duration) -> Self {
        Self {
            runtime,
            client,
            limit,
        }
    }

    /// Sends a request and waits for the head of a good answer; its body may be silent for
    /// `silence` at a time.
    pub(super) fn open(
        &self,
        request: http::Request<Vec<u8>>,
        silence: Duration,
    ) -> Result<BufReader<impl Read>, Failure> {
        let request = request.map(Body::from);
        let answer = async { timeout(self.limit, self.client.send(request)).await };
        let response = self
            .runtime
            .block_on(answer)
            .map_err(|_| Failure::new(Reason::Timeout, "the API server does not answer"))?
            .map_err(|error| Failure::of_send(&error))?;
        let status = response.status();
        let body = |silence| Incoming {
            runtime: self.runtime,
            chunk: Bytes::new(),
            silence,
            body: response.into_body(),
        };
        if status.is_success() {
            return Ok(BufReader::new(body(silence)));
        }
        let mut text = Vec::new();
        let _ = body(self.limit).take(STATUS_MAX).read_to_end(&mut text);
        let answer = serde_json::from_slice::<kube::core::Status>(&text).unwrap_or_default();
        Err(Failure::of_status(status.as_u16(), &answer.message))
    }
}

/// A body as it arrives. It can be parsed without being stored, and the runtime works on while
/// more is waited for.
struct Incoming<'r> {
    runtime: &'r Runtime,
    body: Body,
    chunk: Bytes,
    silence: Duration,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let frame = async { timeout(self.silence, self.body.frame()).await };
            match self.runtime.block_on(frame) {
                Err(_) => {
                    let silent = format!("nothing arrived for {:?}", self.silence);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, silent));
                }
                Ok(None) => return Ok(0),
                Ok(Some(Err(error))) if timed_out(&error) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, error));
                }
                Ok(Some(Err(error))) => return Err(io::Error::other(error)),
                Ok(Some(Ok(frame))) => self.chunk = frame.into_data().unwrap_or_default(),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_where_the_api_server_is() {
        let access = |host: &'static str| {
            Access::new(None, move |name| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
                _ => None,
            })
        };
        for (host, expected) in [
            ("10.96.0.1", "https://10.96.0.1:6443"),
            ("fd00::1", "https://[fd00::1]:6443"),
            ("api.example", "https://api.example:6443"),
        ] {
            let Access::ServiceAccount { folder, url } = access(host).unwrap() else {
                panic!("not the service account");
            };
            assert_eq!(url, expected);
            assert_eq!(folder, Path::new(SERVICE_ACCOUNT));
        }
        let error = Access::new(None, |_| None).unwrap_err().to_string();
        assert_eq!(
            error,
            "KUBERNETES_SERVICE_HOST is not set, so this is not a pod: --kubernetes.kubeconfig must \
             say how to reach the API server"
        );
    }

    #[test]
    fn answers_have_reasons() {
        for (code, reason) in [
            (400, "other"),
            (401, "unauthorized"),
            (403, "forbidden"),
            (410, "expired"),
            (429, "other"),
            (500, "other"),
            (503, "other"),
            (504, "timeout"),
        ] {
            assert_eq!(Failure::of_status(code, "").reason.code(), reason, "{code}");
        }
        let failure = Failure::of_status(403, "pods is forbidden:\nUser \"x\"");
        assert_eq!(
            failure.detail,
            "403 Forbidden: pods is forbidden: User \"x\""
        );
        let refused = |kind: io::ErrorKind| {
            let error = io::Error::other(io::Error::other(io::Error::from(kind)));
            Failure::of_send(&kube::Error::Service(Box::new(error)))
                .reason
                .code()
        };
        assert_eq!(refused(io::ErrorKind::TimedOut), "timeout");
        assert_eq!(refused(io::ErrorKind::ConnectionRefused), "unreachable");
        let long = Failure::new(Reason::Other, &"a ".repeat(1000));
        assert_eq!(long.detail.len(), DETAIL_CHARACTERS);
    }
}
