//! A request to the receiver: connection, TLS, HTTP/1.1 or gRPC by HTTP/2.

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use super::{
    Endpoint, Options, Protocol,
    answer::{ANSWER_BYTES, Body, Verdict, of_grpc, of_http, shown},
};

/// What the head of an answer may take.
const HEAD_BYTES: u16 = 16 * 1024;

/// The method that gRPC calls.
pub(super) const GRPC_PATH: &str =
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// TLS cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file that the configuration names.
    #[error("otlp.ca-file {}: {reason}; allowed: a file with certificates of authorities in PEM", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There are none in the places where systems keep them.
    #[error(
        "otlp.endpoint {0}: this system has no certificates of authorities; --otlp.ca-file names a file of them"
    )]
    NoAuthorities(String),
    /// The TLS library refuses.
    #[error("otlp.endpoint: {0}")]
    Tls(#[from] rustls::Error),
}

/// Sends requests to one receiver.
pub(super) struct Client {
    endpoint: Endpoint,
    protocol: Protocol,
    /// Of every request.
    pub(super) headers: HeaderMap,
    tls: Option<TlsConnector>,
    connection: Option<Connection>,
    /// Names are looked up by a call that nothing can end, so there is never more than one at a time.
    lookup: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// In one line, with all that caused it.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(error) = source {
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = error.source();
        }
        f.write_str(&shown(&text))
    }
}

impl Client {
    /// Reads the authorities, and connects nowhere yet.
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let endpoint = options.endpoint.clone();
        let tls = endpoint
            .tls
            .then(|| tls(&endpoint, options.protocol, options.ca_file.as_deref()))
            .transpose()?;
        let mut headers = HeaderMap::new();
        let agent = concat!("sentry/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        let own: &[(HeaderName, &str)] = match options.protocol {
            Protocol::HttpProtobuf => &[
                (header::CONTENT_TYPE, "application/x-protobuf"),
                (header::CONTENT_ENCODING, "gzip"),
            ],
            Protocol::Grpc => &[
                (header::CONTENT_TYPE, "application/grpc+proto"),
                (header::TE, "trailers"),
                (HeaderName::from_static("grpc-encoding"), "gzip"),
                (HeaderName::from_static("grpc-accept-encoding"), "gzip"),
            ],
        };
        for (name, value) in own {
            headers.insert(name, HeaderValue::from_static(value));
        }
        for (name, value) in &options.headers.0 {
            if name == header::USER_AGENT {
                headers.insert(name, value.clone());
            } else {
                headers.append(name, value.clone());
            }
        }
        Ok(Self {
            endpoint,
            protocol: options.protocol,
            headers,
            tls,
            connection: None,
            lookup: None,
        })
    }

    /// A message as this receiver takes it: compressed, and for gRPC in its frame.
    pub(super) fn packed(&self, message: &[u8]) -> io::Result<Bytes> {
        let frame: &[u8] = match self.protocol {
            Protocol::HttpProtobuf => &[],
            // Compressed, and a length that is not yet known.
            Protocol::Grpc => &[1, 0, 0, 0, 0],
        };
        let mut packed = GzEncoder::new(frame.to_vec(), Compression::fast());
        io::Write::write_all(&mut packed, message)?;
        let mut packed = packed.finish()?;
        if self.protocol == Protocol::Grpc {
            let length = u32::try_from(packed.len() - 5).map_err(io::Error::other)?;
            packed[1..5].copy_from_slice(&length.to_be_bytes());
        }
        Ok(packed.into())
    }

    /// Sends a packed message. What comes of it is one attempt, however it ends; a time limit is the caller's.
    pub(super) async fn send(&mut self, body: Bytes) -> Verdict {
        // Until the answer is whole, the connection is not there for another request.
        if let Some(connection) = self.connection.take() {
            match self.exchange(connection, body.clone()).await {
                Ok(verdict) => return verdict,
                Err(error) if error.is_parse() => return lost(&error),
                // A receiver may end a connection after any answer, which says nothing of this request. If it has it,
                // it gets the same values twice.
                Err(_) => {}
            }
        }
        let connection = match self.connect().await {
            Ok(connection) => connection,
            Err(why) => return Verdict::retry(why),
        };
        let verdict = self.exchange(connection, body).await;
        verdict.unwrap_or_else(|error| lost(&error))
    }

    /// Sends a packed message by a connection, and keeps that for the next one where it can be used again.
    ///
    /// # Errors
    /// When there is no answer.
    async fn exchange(
        &mut self,
        mut connection: Connection,
        body: Bytes,
    ) -> Result<Verdict, hyper::Error> {
        let Ok(request) = self.request(body) else {
            let why = "no request can be made of the endpoint's URL";
            return Ok(Verdict::Refused(why.to_owned()));
        };
        let answer = match &mut connection {
            Connection::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Connection::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (verdict, whole) = self.judge(answer).await;
        if whole {
            self.connection = Some(connection);
        }
        Ok(verdict)
    }

    /// Ends the connection, if there is one.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    fn request(&self, body: Bytes) -> http::Result<Request<Full<Bytes>>> {
        let Endpoint {
            authority, path, ..
        } = &self.endpoint;
        let (path, host) = match self.protocol {
            Protocol::HttpProtobuf => (path.parse::<Uri>()?, true),
            Protocol::Grpc => {
                let scheme = if self.endpoint.tls { "https" } else { "http" };
                let uri = Uri::builder().scheme(scheme).authority(authority.as_str());
                (uri.path_and_query(GRPC_PATH).build()?, false)
            }
        };
        let mut request = Request::builder().method(Method::POST).uri(path);
        if let Some(headers) = request.headers_mut() {
            headers.clone_from(&self.headers);
            if host {
                headers.insert(header::HOST, HeaderValue::from_str(authority)?);
            }
        }
        request.body(Full::new(body))
    }

    async fn connect(&mut self) -> Result<Connection, String> {
        let shown = |error: &dyn std::error::Error| Chain(error).to_string();
        let addresses = self.addresses().await.map_err(|error| {
            let host = &self.endpoint.host;
            format!("the address of {host} cannot be found: {}", Chain(&error))
        })?;
        let stream = TcpStream::connect(addresses.as_slice());
        let stream = stream.await.map_err(|error| shown(&error))?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return self.handshake(TokioIo::new(stream)).await;
        };
        let name = ServerName::try_from(self.endpoint.host.clone());
        let name = name.map_err(|error| shown(&error))?;
        let stream = tls.connect(name, stream).await;
        let stream = stream.map_err(|error| format!("TLS: {}", Chain(&error)))?;
        self.handshake(TokioIo::new(stream)).await
    }

    async fn addresses(&mut self) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = (self.endpoint.host.clone(), self.endpoint.port);
        let look = move || Ok((host.as_str(), port).to_socket_addrs()?.collect());
        let lookup = self
            .lookup
            .get_or_insert_with(|| tokio::task::spawn_blocking(look));
        let found = lookup.await;
        self.lookup = None;
        found.map_err(io::Error::other)?
    }

    async fn handshake<Io>(&self, io: Io) -> Result<Connection, String>
    where
        Io: Read + Write + Unpin + Send + 'static,
    {
        let shown = |error: hyper::Error| Chain(&error).to_string();
        Ok(match self.protocol {
            Protocol::HttpProtobuf => {
                let mut http = http1::Builder::new();
                let http = http.max_buf_size(HEAD_BYTES.into()).handshake(io);
                let (sender, connection) = http.await.map_err(shown)?;
                // Its errors are those of the requests.
                tokio::spawn(connection);
                Connection::Http1(sender)
            }
            Protocol::Grpc => {
                let mut http = http2::Builder::new(TokioExecutor::new());
                http.initial_stream_window_size(65_535)
                    .initial_connection_window_size(65_535)
                    .max_header_list_size(HEAD_BYTES.into())
                    .max_send_buf_size(64 * 1024);
                let (sender, connection) = http.handshake(io).await.map_err(shown)?;
                tokio::spawn(connection);
                Connection::Http2(sender)
            }
        })
    }

    /// What an answer means, and whether the connection can be used again.
    async fn judge(&self, answer: Response<Incoming>) -> (Verdict, bool) {
        let (head, mut body) = answer.into_parts();
        let (mut bytes, mut trailers, mut whole) = (Vec::new(), None, true);
        while let Some(frame) = body.frame().await {
            let frame = match frame.map(Frame::into_data) {
                Ok(frame) => frame,
                Err(error) => return (lost(&error), false),
            };
            match frame {
                Ok(data) => {
                    let room = ANSWER_BYTES - bytes.len();
                    bytes.extend_from_slice(&data[..data.len().min(room)]);
                    whole = data.len() <= room;
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
            if !whole {
                break;
            }
        }
        let text = |name: &str| {
            // An answer without a body has the trailers in its head.
            let trailers = trailers.iter().find_map(|trailers| trailers.get(name));
            trailers.or(head.headers.get(name))?.to_str().ok()
        };
        let status = head.status.as_u16();
        let body = Body {
            bytes: &bytes,
            whole,
            kind: text("content-type").unwrap_or_default(),
        };
        let verdict = match self.protocol {
            Protocol::HttpProtobuf => of_http(status, text("retry-after"), body, SystemTime::now()),
            Protocol::Grpc => of_grpc(
                status,
                text("grpc-status"),
                text("grpc-message").unwrap_or_default(),
                text("grpc-status-details-bin"),
                text("grpc-encoding"),
                body,
            ),
        };
        (verdict, whole)
    }
}

fn lost(error: &hyper::Error) -> Verdict {
    Verdict::retry(Chain(error).to_string())
}

/// TLS as the receiver is to be trusted: by the authorities of a file, or by the system's.
fn tls(
    endpoint: &Endpoint,
    protocol: Protocol,
    ca_file: Option<&Path>,
) -> Result<TlsConnector, Error> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let bad = |reason: String| Error::CaFile {
            path: path.to_owned(),
            reason,
        };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| match error {
            rustls::pki_types::pem::Error::Io(error) => bad(format!("cannot be read: {error}")),
            error => bad(error.to_string()),
        })?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            let added = roots.add(certificate);
            added.map_err(|error| bad(Chain(&error).to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("no certificate is in it".to_owned()));
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(Error::NoAuthorities(endpoint.to_string()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![match protocol {
        Protocol::HttpProtobuf => b"http/1.1".to_vec(),
        Protocol::Grpc => b"h2".to_vec(),
    }];
    Ok(TlsConnector::from(Arc::new(config)))
}
