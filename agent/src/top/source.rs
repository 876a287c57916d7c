//! Where the numbers come from: an agent's `/api/v1`, or the same answers made in this process.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderValue, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, USER_AGENT},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use super::answer::{Answer, Status, Workloads};
use crate::{config::one_line, expose::View};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long one of this host may take to answer for the first time, before it is taken for none.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// What an answer may take: 2,000 workloads with long names are a tenth of it.
const ANSWER_BYTES: usize = 16 << 20;

/// Where an agent answers.
#[derive(Clone, PartialEq)]
pub(crate) struct Url {
    tls: bool,
    /// Host and port.
    authority: String,
    /// Without a `/` at its end.
    path: String,
    /// User and password, as the header has them.
    credentials: Option<HeaderValue>,
}

/// A URL that is none of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "allowed: a URL such as http://127.0.0.1:9763 or https://USER:PASSWORD@HOST:PORT; in user and password, % and what has a meaning in URLs as %XX"
)]
pub(crate) struct UrlError;

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let url: Uri = text.parse().map_err(|_| UrlError)?;
        let tls = match url.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(UrlError),
        };
        let whole = url.authority().ok_or(UrlError)?.as_str();
        let (user, authority) = match whole.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, whole),
        };
        if authority.is_empty() || url.query().is_some() || text.contains('#') {
            return Err(UrlError);
        }
        let credentials = user.map(|user| {
            let (user, password) = user.split_once(':').ok_or(UrlError)?;
            let mut pair = decoded(user)?;
            pair.push(b':');
            pair.extend(decoded(password)?);
            let header = format!("Basic {}", STANDARD.encode(pair));
            let mut header = HeaderValue::try_from(header).map_err(|_| UrlError)?;
            header.set_sensitive(true);
            Ok(header)
        });
        Ok(Self {
            tls,
            authority: authority.to_owned(),
            path: url.path().trim_end_matches('/').to_owned(),
            credentials: credentials.transpose()?,
        })
    }
}

/// Bytes of which some are written as `%XX`.
fn decoded(text: &str) -> Result<Vec<u8>, UrlError> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).ok_or(UrlError)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(UrlError);
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| UrlError)?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    Ok(bytes)
}

/// Without user and password.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no way to it.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It refuses.
    #[error("it wants a password: USER:PASSWORD@ before the host in --url")]
    Unauthorized,
    /// It answers with something else.
    #[error("{0}: what answers is no agent with /api/v1")]
    Refused(StatusCode),
    /// It is not what an agent says.
    #[error("the answer is none of an agent: {0}")]
    Strange(String),
    /// TLS cannot begin.
    #[error("TLS: {0}")]
    Tls(String),
}

/// An agent that is asked.
pub(crate) struct Remote {
    url: Url,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// Where the numbers come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// Probes of this process.
    Own(Arc<dyn View>),
    /// An agent.
    Agent(Arc<Remote>),
}

impl Source {
    /// The agent at this address; whether it answers, is not yet known.
    ///
    /// # Errors
    /// [`Error::Tls`] where the system has no authorities that could be trusted.
    pub(crate) fn agent(url: &Url) -> Result<Self, Error> {
        let client = client(url.tls)?;
        let url = url.clone();
        Ok(Self::Agent(Arc::new(Remote { url, client })))
    }

    /// The agent of this host, if one answers where it listens by its configuration.
    ///
    /// # Errors
    /// If one does, and refuses.
    pub(crate) async fn on_this_host(listen: SocketAddr) -> Result<Option<Self>, Error> {
        let ip = match listen.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let url = Url {
            tls: false,
            authority: SocketAddr::new(ip, listen.port()).to_string(),
            path: String::new(),
            credentials: None,
        };
        let client = client(false)?;
        let remote = Remote { url, client };
        let status = timeout(FIRST_PATIENCE, remote.get("status")).await;
        match status.map(|answer| answer.and_then(|bytes| parsed::<Status>(&bytes))) {
            Ok(Ok(_)) => Ok(Some(Self::Agent(Arc::new(remote)))),
            Ok(Err(error @ Error::Unauthorized)) => Err(error),
            _ => Ok(None),
        }
    }

    /// What it says now.
    pub(super) async fn read(&self) -> Result<Answer, Error> {
        let (status, workloads) = match self {
            Self::Agent(remote) => {
                let both = async {
                    let status = remote.get("status").await?;
                    Ok((status, remote.get("workloads").await?))
                };
                let both = timeout(PATIENCE, both).await;
                both.map_err(|_| Error::Late(PATIENCE))??
            }
            Self::Own(view) => {
                let view = Arc::clone(view);
                let made =
                    tokio::task::spawn_blocking(move || (view.status(), view.workloads())).await;
                let (status, workloads) =
                    made.map_err(|error| Error::Unreachable(error.to_string()))?;
                (status.into(), workloads.into())
            }
        };
        Ok(Answer {
            status: parsed::<Status>(&status)?,
            workloads: parsed::<Workloads>(&workloads)?,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(_) => f.write_str("probes of its own"),
            Self::Agent(remote) => remote.url.fmt(f),
        }
    }
}

impl Remote {
    async fn get(&self, what: &str) -> Result<Bytes, Error> {
        let request = Request::get(format!("{}/api/v1/{what}", self.url))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("sentry/", env!("CARGO_PKG_VERSION")));
        let request = match &self.url.credentials {
            Some(credentials) => request.header(AUTHORIZATION, credentials),
            None => request,
        };
        let request = request.body(Empty::new()).map_err(strange)?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| Error::Unreachable(chain(&error)))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(Error::Unauthorized),
            other => return Err(Error::Refused(other)),
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect();
        let body = body.await.map_err(|error| Error::Strange(chain(&*error)))?;
        Ok(body.to_bytes())
    }
}

fn strange(error: impl std::error::Error) -> Error {
    Error::Strange(chain(&error))
}

fn parsed<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(strange)
}

/// The innermost cause, in one line: what is around it says only that a connection failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    one_line(&error.to_string())
}

fn client(tls: bool) -> Result<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, Error> {
    let mut roots = RootCertStore::empty();
    if tls {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            let why = "this system has no certificates of authorities; the variable SSL_CERT_FILE names a file of them";
            return Err(Error::Tls(why.to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url: Url = "http://127.0.0.1:9763".parse().unwrap();
        assert_eq!(url.to_string(), "http://127.0.0.1:9763");
        assert_eq!(url.credentials, None);
        let url: Url = "https://sentry:p%40ss%25@[::1]:9763/node-7/"
            .parse()
            .unwrap();
        assert_eq!(url.to_string(), "https://[::1]:9763/node-7");
        let credentials = STANDARD.encode("sentry:p@ss%");
        assert_eq!(
            url.credentials.unwrap().to_str().unwrap(),
            format!("Basic {credentials}")
        );
        for wrong in [
            "",
            "127.0.0.1:9763",
            "ftp://host",
            "http://",
            "http://host?x=1",
            "http://host#x",
            "http://user@host",
            "http://a:%4@host",
            "http://a:%zz@host",
        ] {
            assert_eq!(wrong.parse::<Url>(), Err(UrlError), "{wrong}");
        }
    }
}
