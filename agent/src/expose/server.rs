//! Connections: accepting them, bounding them, and cutting off clients that are too slow.

use std::cmp::Reverse;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use super::Exposed;
use super::http::{MAX_SCRAPES, MAX_VIEWS, router};
use super::web_config::{HandshakeFailure, Refusal, network};

/// Connections open at once. One more takes the place of another that [`dispensable`] finds, so that nobody keeps others
/// out by holding on; where there is none, it is answered 503 and closed.
const MAX_CONNECTIONS: usize = 64;

/// What a request's line and headers may take; beyond it the client gets 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What a request's body may take; beyond it the client gets 413.
const MAX_BODY_BYTES: usize = 1024;

/// What TLS keeps of an answer that a client has not taken yet.
const TLS_BUFFER_BYTES: usize = 32 * 1024;

/// Threads beside the server's own for `--web.config.file`: one to hash passwords, and one to look at files.
const WEB_CONFIG_THREADS: usize = 2;

/// Threads for what goes on without a scrape: one to keep series in order, one for the summary on a terminal, and one to
/// read the configuration anew.
const UPKEEP_THREADS: usize = 3;

/// How long each step of a conversation may take.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// From the first byte of a request to the end of its headers, and as long again for its body; for a new
    /// connection it runs from the start, and a TLS handshake is part of it.
    pub(crate) head: Duration,
    /// From an answer to the next request. Longer than the usual scrape intervals, so that a scraper's
    /// connection lasts and adds no handshakes to those that the agent measures.
    pub(crate) idle: Duration,
    /// How long a client may read nothing while an answer waits for it.
    pub(crate) write_stall: Duration,
    /// From the end of a request's headers to the end of its answer.
    pub(crate) request: Duration,
    /// How long a scrape waits for others to end before it gets 503.
    pub(crate) scrape_wait: Duration,
    /// How long requests in flight may go on after a shutdown.
    pub(crate) drain: Duration,
    /// How long to wait after the kernel failed to hand over a connection.
    pub(crate) accept_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(5),
            idle: Duration::from_secs(120),
            write_stall: Duration::from_secs(10),
            request: Duration::from_secs(60),
            scrape_wait: Duration::from_secs(1),
            drain: Duration::from_millis(500),
            accept_pause: Duration::from_millis(200),
        }
    }
}

/// A runtime as the server wants it: one thread, and for what takes longer as many more as may run at once, which end
/// soon after.
///
/// # Errors
/// When the kernel has no file descriptors left for it.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(MAX_SCRAPES + MAX_VIEWS + WEB_CONFIG_THREADS + UPKEEP_THREADS)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
}

/// Serves `exposed` on `listener` until `shutdown` is done; then requests in flight get [`Limits::drain`] to end.
///
/// A scrape that is running then goes on in its own thread; end the runtime with `shutdown_background`.
pub(crate) async fn serve(listener: TcpListener, exposed: Exposed, shutdown: impl Future) {
    let exposed = Arc::new(exposed);
    let router = router(Arc::clone(&exposed));
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    // Those of `connections`, in the order of their coming.
    let mut guests: Vec<Guest> = Vec::with_capacity(MAX_CONNECTIONS);
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            _ = &mut shutdown => break,
            accepted = accept(&listener, &exposed) => accepted,
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            let Some(idler) = dispensable(&guests) else {
                refuse(&stream, &exposed);
                continue;
            };
            exposed
                .stats
                .connections_refused
                .fetch_add(1, Ordering::Relaxed);
            idler.task.abort();
            // It ends as soon as it has its turn, which is now.
            while connections.len() >= MAX_CONNECTIONS {
                connections.join_next().await;
            }
        }
        guests.retain(|guest| !guest.task.is_finished());
        let progress = Arc::new(Progress::new());
        let connection = Connection {
            stream,
            peer,
            progress: Arc::clone(&progress),
            exposed: Arc::clone(&exposed),
            router: router.clone(),
        };
        let task = connections.spawn(converse(connection, stopping.clone()));
        guests.push(Guest {
            task,
            progress,
            address: network(peer),
        });
    }
    drop((listener, stopping));
    let _ = stop.send(());
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(exposed.limits.drain, drained).await;
    connections.shutdown().await;
}

/// The next connection and where it comes from. Errors end neither the server nor, since most last a while, its rest.
async fn accept(listener: &TcpListener, exposed: &Exposed) -> (TcpStream, IpAddr) {
    let mut failing = false;
    loop {
        let error = match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer.ip()),
            Err(error) => error,
        };
        exposed.stats.accept_errors.fetch_add(1, Ordering::Relaxed);
        // The client gave up before its turn: that says nothing about the next one.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            continue;
        }
        if !failing {
            failing = true;
            tracing::warn!(%error, "cannot accept connections; trying again");
        }
        tokio::time::sleep(exposed.limits.accept_pause).await;
    }
}

fn refuse(stream: &TcpStream, exposed: &Exposed) {
    let stats = &exposed.stats;
    stats.connections_refused.fetch_add(1, Ordering::Relaxed);
    if exposed
        .web
        .as_ref()
        .is_some_and(|web| web.current().tls.is_some())
    {
        // The client could not read it.
        return;
    }
    let answer = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    // The buffer of a new connection takes it; if not, closing says as much.
    let _ = stream.try_write(answer.as_bytes());
}

/// A connection as the one who lets it in sees it.
struct Guest {
    task: AbortHandle,
    progress: Arc<Progress>,
    address: IpAddr,
}

/// Which of `guests`, the oldest first, makes room for another: one that does nothing that anybody asked for who may, or
/// else one of those that wait for their next request. Among them the address with most has to give way, by its oldest
/// or the one that has waited longest, so that nobody pushes out others by coming often.
fn dispensable(guests: &[Guest]) -> Option<&Guest> {
    let standing: Vec<_> = guests
        .iter()
        .filter(|guest| !guest.task.is_finished())
        .map(|guest| (guest, guest.progress.standing()))
        .collect();
    let idlers = standing.iter().filter(|(_, standing)| standing.is_idler());
    let idlers = idlers.enumerate().map(|(age, (guest, _))| (*guest, age));
    first_of_most(&idlers.collect::<Vec<_>>()).or_else(|| {
        let waiting = standing.iter().filter_map(|(guest, standing)| {
            let Phase::Idle(since) = standing.phase else {
                return None;
            };
            Some((*guest, since))
        });
        first_of_most(&waiting.collect::<Vec<_>>())
    })
}

/// Of the address with most guests, the one with the lowest rank; the lowest of all decides between addresses.
fn first_of_most<'a, R: Ord + Copy>(ranked: &[(&'a Guest, R)]) -> Option<&'a Guest> {
    let of = |address| {
        let others = ranked.iter().filter(|(other, _)| other.address == address);
        others.count()
    };
    let most = |(guest, rank): &&(&'a Guest, R)| (of(guest.address), Reverse(*rank));
    ranked.iter().max_by_key(most).map(|(guest, _)| *guest)
}

/// A connection, and what it is served with.
struct Connection {
    stream: TcpStream,
    peer: IpAddr,
    progress: Arc<Progress>,
    exposed: Arc<Exposed>,
    router: Router,
}

/// Serves one connection to its end, or until its client is out of time.
async fn converse(connection: Connection, mut stopping: watch::Receiver<()>) {
    let Connection {
        stream,
        peer,
        progress,
        exposed,
        router,
    } = connection;
    // An answer ends in a short segment that would otherwise wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let limits = &exposed.limits;
    let stats = &exposed.stats;
    let secured = tokio::select! {
        secured = secured(stream, &exposed) => secured,
        () = sleep_until(progress.deadline(limits)) => {
            stats.timeouts.fetch_add(1, Ordering::Relaxed);
            Err(HandshakeFailure::Timeout)
        }
        _ = stopping.changed() => return,
    };
    let (stream, tls) = match secured {
        Ok(secured) => secured,
        Err(failure) => {
            tracing::debug!(%peer, %failure, "no TLS with a client");
            stats.handshake_failed(failure);
            return;
        }
    };
    let io = WatchedIo {
        stream: TokioIo::new(stream),
        progress: Arc::clone(&progress),
    };
    let service = service_fn(|request| {
        progress.request_begins();
        let (router, exposed) = (router.clone(), Arc::clone(&exposed));
        let (tls, progress) = (tls.clone(), Arc::clone(&progress));
        async move {
            let answer = answer(request, router, &exposed, tls, peer, &progress).await?;
            Ok::<_, Outdated>(answer.map(|body| WatchedBody { body, progress }))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            // It would count the idle time as well; the deadlines below tell them apart.
            .header_read_timeout(None)
            .serve_connection(io, service)
    );
    let mut sleep = pin!(sleep_until(progress.deadline(limits)));
    let mut stopping = pin!(stopping.changed());
    let mut stopped = false;
    let out_of_time = std::future::poll_fn(|cx| {
        if !stopped && stopping.as_mut().poll(cx).is_ready() {
            stopped = true;
            connection.as_mut().graceful_shutdown();
        }
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        // All that moves the deadline happens while the connection is polled, so this is the time to look at it.
        let deadline = progress.deadline(limits);
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx).map(|()| true)
    })
    .await;
    if out_of_time && !progress.is_idle() {
        exposed.stats.timeouts.fetch_add(1, Ordering::Relaxed);
    }
}

/// What its handshake asked of a connection; nothing without TLS.
type Agreed = Option<Arc<ServerConfig>>;

/// The connection as it goes on: with TLS, where that is in force.
async fn secured(
    stream: TcpStream,
    exposed: &Exposed,
) -> Result<(Stream, Agreed), HandshakeFailure> {
    let Some(web) = &exposed.web else {
        return Ok((Stream::Plain(stream), None));
    };
    let Some(tls) = web.fresh().await.tls.clone() else {
        return Ok((Stream::Plain(stream), None));
    };
    // TLS begins with a byte that is no letter, and HTTP with a method.
    let mut first = [0];
    let peeked = stream.peek(&mut first).await;
    if peeked.is_ok_and(|read| read == 1) && first[0].is_ascii_alphabetic() {
        // What is not read would turn the close into a reset, and the answer would be lost.
        let _ = stream.try_read(&mut [0; 4096]);
        let answer = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: 47\r\n\r\nthis port speaks HTTPS; ask by https:// instead";
        let _ = stream.try_write(answer.as_bytes());
        return Err(HandshakeFailure::NotTls);
    }
    let bounded = |session: &mut rustls::ServerConnection| {
        session.set_buffer_limit(Some(TLS_BUFFER_BYTES));
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&tls));
    match acceptor.accept_with(stream, bounded).await {
        Ok(stream) => Ok((Stream::Tls(Box::new(stream)), Some(tls))),
        Err(error) => Err(HandshakeFailure::from(&error)),
    }
}

/// The connection began under settings of TLS that are not in force any more. It ends without an answer, upon which
/// clients ask again by another one.
#[derive(Debug, thiserror::Error)]
#[error("the settings of TLS have changed since the connection began")]
struct Outdated;

async fn answer(
    request: Request<Incoming>,
    router: Router,
    exposed: &Exposed,
    tls: Agreed,
    peer: IpAddr,
    progress: &Progress,
) -> Result<Response, Outdated> {
    let patience = exposed.limits.head;
    let mut in_force = None;
    let refusal = match &exposed.web {
        Some(web) => {
            let current = web.fresh().await;
            if tls.as_ref().map(Arc::as_ptr) != current.tls.as_ref().map(Arc::as_ptr) {
                return Err(Outdated);
            }
            let refusal = match current.allow_request() {
                Ok(()) => web
                    .admit(&current, request.headers(), peer)
                    .await
                    .err()
                    .map(|refusal| {
                        exposed.stats.refused(refusal);
                        closing(not_admitted(refusal))
                    }),
                Err(wait) => {
                    exposed
                        .stats
                        .requests_limited
                        .fetch_add(1, Ordering::Relaxed);
                    let text = "more requests than rate_limit allows\n";
                    let response = later(StatusCode::TOO_MANY_REQUESTS, wait, text);
                    Some(if progress.standing().admitted {
                        response
                    } else {
                        closing(response)
                    })
                }
            };
            in_force = Some(current);
            refusal
        }
        None => None,
    };
    let mut response = match refusal {
        // The body would be taken for the next request.
        Some(response) if !request.body().is_end_stream() => closing(response),
        Some(response) => response,
        None => match read_body(request, patience).await {
            Ok(request) => {
                progress.admitted();
                router.oneshot(request).await.into_response()
            }
            Err(response) => response,
        },
    };
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(X_CONTENT_TYPE_OPTIONS, nosniff);
    for (name, value) in in_force.iter().flat_map(|in_force| &in_force.headers) {
        headers.entry(name).or_insert_with(|| value.clone());
    }
    Ok(response)
}

/// The last answer of its connection. One who is not let in gets no other: each would take up room if nobody reads it.
fn closing(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

/// The answer to one who is not let in.
fn not_admitted(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Missing | Refusal::Malformed | Refusal::UnknownUser | Refusal::WrongPassword => (
            StatusCode::UNAUTHORIZED,
            [(WWW_AUTHENTICATE, "Basic realm=\"sentry\"")],
            "a user and a password are needed\n",
        )
            .into_response(),
        Refusal::TooMany(wait) => {
            let text = "too many failed log-ins from this address\n";
            later(StatusCode::TOO_MANY_REQUESTS, wait, text)
        }
        Refusal::Busy => {
            let text = "too many log-ins are under way\n";
            later(
                StatusCode::SERVICE_UNAVAILABLE,
                Duration::from_secs(1),
                text,
            )
        }
    }
}

/// An answer that says when to try again, in whole seconds.
fn later(status: StatusCode, wait: Duration, text: &'static str) -> Response {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    (status, [(RETRY_AFTER, seconds.to_string())], text).into_response()
}

/// The request with its body in memory, or the answer to a client whose body is too large or too slow.
async fn read_body(
    request: Request<Incoming>,
    patience: Duration,
) -> Result<Request<Body>, Response> {
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return Ok(Request::from_parts(head, Body::empty()));
    }
    let refusal = |status: StatusCode, text: String| {
        // The rest of the body would be taken for the next request.
        (status, [(CONNECTION, "close")], text).into_response()
    };
    let too_large = || {
        let text = format!("a request's body may have {MAX_BODY_BYTES} bytes\n");
        refusal(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let read = Limited::new(body, MAX_BODY_BYTES).collect();
    match tokio::time::timeout(patience, read).await {
        Ok(Ok(body)) => Ok(Request::from_parts(head, Body::from(body.to_bytes()))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(refusal(StatusCode::BAD_REQUEST, format!("{error}\n"))),
        Err(_) => {
            let text = "the request's body came too slowly\n".to_owned();
            Err(refusal(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The head of a request is due since then.
    Head(Instant),
    /// A request is being answered since then; `made` once its answer has left the service.
    Request { since: Instant, made: bool },
    /// The last answer was written then.
    Idle(Instant),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    phase: Phase,
    /// Since when the client has taken nothing of what is there to be written.
    blocked: Option<Instant>,
    /// Whether a whole request came of one who may ask.
    admitted: bool,
}

impl Standing {
    fn deadline(self, limits: &Limits) -> Instant {
        let phase = match self.phase {
            Phase::Head(since) => since + limits.head,
            Phase::Request { since, .. } => since + limits.request,
            Phase::Idle(since) => since + limits.idle,
        };
        self.blocked
            .map_or(phase, |since| phase.min(since + limits.write_stall))
    }

    /// Whether it does nothing that anybody asked for who may. An answer that nobody reads is nothing, either.
    fn is_idler(self) -> bool {
        let is_busy = matches!(self.phase, Phase::Request { .. }) && self.blocked.is_none();
        !self.admitted && !is_busy
    }
}

/// What the stream, the service and the clock of a connection know of each other.
struct Progress(Mutex<Standing>);

impl Progress {
    fn new() -> Self {
        Self(Mutex::new(Standing {
            phase: Phase::Head(Instant::now()),
            blocked: None,
            admitted: false,
        }))
    }

    fn admitted(&self) {
        self.update(|standing| standing.admitted = true);
    }

    fn update(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn standing(&self) -> Standing {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deadline(&self, limits: &Limits) -> Instant {
        self.standing().deadline(limits)
    }

    fn is_idle(&self) -> bool {
        matches!(self.standing().phase, Phase::Idle(_))
    }

    fn bytes_came(&self) {
        self.update(|standing| {
            if let Phase::Idle(_) = standing.phase {
                standing.phase = Phase::Head(Instant::now());
            }
        });
    }

    fn request_begins(&self) {
        self.update(|standing| {
            standing.phase = Phase::Request {
                since: Instant::now(),
                made: false,
            };
        });
    }

    fn answer_made(&self) {
        self.update(|standing| {
            if let Phase::Request { made, .. } = &mut standing.phase {
                *made = true;
            }
        });
    }

    fn written<T>(&self, result: &Poll<T>) {
        self.update(|standing| match result {
            Poll::Pending => {
                standing.blocked.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => standing.blocked = None,
        });
    }

    /// Called when nothing is left to be written, as a flush comes only then.
    fn flushed(&self) {
        self.update(|standing| {
            if let Phase::Request { made: true, .. } = standing.phase {
                standing.phase = Phase::Idle(Instant::now());
            }
        });
    }
}

/// A connection's stream.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buffer),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection's stream, which notes when it moves.
struct WatchedIo {
    stream: TokioIo<Stream>,
    progress: Arc<Progress>,
}

impl Drop for WatchedIo {
    fn drop(&mut self) {
        // The kernel would go on for minutes offering what this client doesn't read, and keep the memory.
        if self.progress.standing().blocked.is_some() {
            let _ = self.stream.inner().socket().set_zero_linger();
        }
    }
}

impl Read for WatchedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if result.is_ready() {
            self.progress.bytes_came();
        }
        result
    }
}

impl Write for WatchedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.progress.written(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.progress.written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS may have something left that hyper has handed over.
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress.written(&result);
        if result.is_ready() {
            self.progress.flushed();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer's body, which notes when all of it has gone to the stream.
struct WatchedBody {
    body: Body,
    progress: Arc<Progress>,
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.progress.answer_made();
    }
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expose::loopback::{Client, Server, quick};
    use std::net::TcpStream as StdStream;
    use std::process::Command;
    use std::sync::Condvar;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Many times what fits into both ends' buffers.
    fn large() -> String {
        "sentry_x{cgroup=\"/a\"} 1\n".repeat(640_000)
    }

    #[test]
    fn deadlines_follow_the_phase() {
        let limits = Limits::default();
        let start = Instant::now();
        let after = |standing: Standing| (standing.deadline(&limits) - start).as_secs();
        let stands = |phase, blocked| Standing {
            phase,
            blocked,
            admitted: true,
        };
        let request = Phase::Request {
            since: start,
            made: true,
        };
        let later = start + Duration::from_secs(55);
        assert_eq!(after(stands(Phase::Head(start), None)), 5);
        assert_eq!(after(stands(request, None)), 60);
        assert_eq!(after(stands(Phase::Idle(start), None)), 120);
        assert_eq!(after(stands(request, Some(start))), 10);
        assert_eq!(after(stands(request, Some(later))), 60);
    }

    #[test]
    fn a_slow_head_is_cut_off() {
        let server = Server::start(
            String::new,
            Limits {
                head: 150 * MILLISECOND,
                ..quick()
            },
        );
        let mut silent = Client::connect(server.address);
        let mut trickle = Client::connect(server.address);
        let start = std::time::Instant::now();
        let mut sent = 0;
        for byte in b"GET /healthz HTTP/1.1\r\nHost: a\r\n".iter().cycle() {
            if !trickle.send(&[*byte]) {
                break;
            }
            sent += 1;
            thread::sleep(10 * MILLISECOND);
        }
        assert!(start.elapsed() >= 150 * MILLISECOND, "{sent} bytes");
        assert!(sent < 60, "{sent} bytes");
        assert_eq!(silent.rest(), b"");
        assert_eq!(server.stats.timeouts_total(), 2);
    }

    #[test]
    fn the_head_of_a_later_request_has_the_same_time() {
        let server = Server::start(
            String::new,
            Limits {
                head: 150 * MILLISECOND,
                idle: Duration::from_secs(60),
                ..quick()
            },
        );
        let mut client = Client::connect(server.address);
        assert_eq!(client.get("/healthz", "").status, 200);
        // Idle for longer than a head may take.
        thread::sleep(250 * MILLISECOND);
        assert_eq!(client.get("/healthz", "").status, 200);
        assert!(client.send(b"GET /hea"));
        let start = std::time::Instant::now();
        assert_eq!(client.rest(), b"");
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(server.stats.timeouts_total(), 1);
    }

    #[test]
    fn an_idle_connection_ends_without_being_counted() {
        let server = Server::start(
            String::new,
            Limits {
                idle: 100 * MILLISECOND,
                ..quick()
            },
        );
        let mut client = Client::connect(server.address);
        assert_eq!(client.get("/healthz", "").status, 200);
        let start = std::time::Instant::now();
        assert_eq!(client.rest(), b"");
        assert!(start.elapsed() >= 90 * MILLISECOND);
        assert_eq!(server.stats.timeouts_total(), 0);
    }

    #[test]
    fn a_huge_head_gets_431() {
        let server = Server::start(String::new, quick());
        let padding = |bytes: usize| format!("X-Padding: {}\r\n", "a".repeat(bytes));
        let mut client = Client::connect(server.address);
        assert_eq!(client.get("/healthz", &padding(15_000)).status, 200);
        let mut client = Client::connect(server.address);
        assert_eq!(client.get("/healthz", &padding(20_000)).status, 431);
        let mut endless = Client::connect(server.address);
        assert!(endless.send(b"GET /healthz HTTP/1.1\r\nX: "));
        let mut sent = 0;
        while sent < 1 << 26 && endless.send(&[b'a'; 4096]) {
            sent += 4096;
        }
        assert!(sent < 1 << 26);
    }

    #[test]
    fn a_large_body_gets_413() {
        let server = Server::start(String::new, quick());
        let length = |bytes: usize| format!("Content-Length: {bytes}\r\n");
        let mut client = Client::connect(server.address);
        let answer = client.get("/healthz", &length(1025));
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (413, "a request's body may have 1024 bytes\n")
        );
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(client.rest(), b"");

        let chunked = "Transfer-Encoding: chunked\r\n";
        let mut client = Client::connect(server.address);
        client.request("GET", "/healthz", chunked);
        assert!(client.send(format!("401\r\n{}\r\n", "a".repeat(1025)).as_bytes()));
        assert_eq!(client.answer().status, 413);

        // As much as is allowed, either way, and the connection goes on.
        let mut client = Client::connect(server.address);
        client.request("GET", "/healthz", &length(1024));
        assert!(client.send(&[b'a'; 1024]));
        assert_eq!(client.answer().status, 200);
        client.request("GET", "/healthz", chunked);
        assert!(client.send(format!("400\r\n{}\r\n0\r\n\r\n", "a".repeat(1024)).as_bytes()));
        assert_eq!(client.answer().status, 200);
    }

    #[test]
    fn a_slow_body_gets_408() {
        let server = Server::start(
            String::new,
            Limits {
                head: 100 * MILLISECOND,
                ..quick()
            },
        );
        let mut client = Client::connect(server.address);
        let answer = client.get("/healthz", "Content-Length: 10\r\n");
        assert_eq!(answer.status, 408);
        assert_eq!(client.rest(), b"");
    }

    #[test]
    fn a_reader_that_stalls_is_cut_off() {
        for encoding in ["", "Accept-Encoding: gzip\r\n"] {
            let noise = move || {
                if encoding.is_empty() {
                    large()
                } else {
                    crate::expose::loopback::noise(1 << 24)
                }
            };
            let server = Server::start(
                noise,
                Limits {
                    write_stall: 200 * MILLISECOND,
                    ..quick()
                },
            );
            let mut client = Client::connect(server.address);
            client.request("GET", "/metrics", encoding);
            server.wait_for("the time-out", |stats| stats.timeouts_total() == 1);
            // What was on its way ends in a reset: the kernel keeps nothing for this client.
            let (read, reset) = client.drain();
            assert!(read < 1 << 23, "{read}");
            assert!(reset);
            // Its turn is free again.
            let mut other = Client::connect(server.address);
            assert_eq!(other.get("/healthz", "").status, 200);
        }
    }

    #[test]
    fn a_reader_that_dawdles_is_cut_off() {
        let server = Server::start(
            large,
            Limits {
                write_stall: 500 * MILLISECOND,
                request: 700 * MILLISECOND,
                ..quick()
            },
        );
        let mut client = Client::connect(server.address);
        client.request("GET", "/metrics", "");
        let start = std::time::Instant::now();
        let mut read = 0;
        while client.read_some(100_000).inspect(|n| read += n).is_some() {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(20 * MILLISECOND);
        }
        assert!(start.elapsed() >= 600 * MILLISECOND);
        assert!(read < large().len(), "{read}");
        assert_eq!(server.stats.timeouts_total(), 1);
    }

    #[test]
    fn a_steady_reader_gets_all_of_it() {
        let server = Server::start(large, quick());
        let mut client = Client::connect(server.address);
        for _ in 0..2 {
            let answer = client.get("/metrics", "Accept: application/openmetrics-text\r\n");
            assert_eq!(answer.header("content-length"), Some("15360000"));
            assert_eq!(answer.body, large().into_bytes());
        }
        assert_eq!(server.stats.timeouts_total(), 0);
    }

    /// A scrape that lasts until the gate is opened.
    #[derive(Default)]
    struct Gate {
        begun: AtomicUsize,
        open: Mutex<bool>,
        opened: Condvar,
    }

    impl Gate {
        fn pass(&self) -> String {
            self.begun.fetch_add(1, Ordering::SeqCst);
            let open = self.open.lock().unwrap();
            drop(self.opened.wait_while(open, |open| !*open).unwrap());
            "# EOF\n".to_owned()
        }

        fn open(&self) {
            *self.open.lock().unwrap() = true;
            self.opened.notify_all();
        }
    }

    fn gated(scrape_wait: Duration) -> (Server, Arc<Gate>, [Client; 2]) {
        let gate = Arc::new(Gate::default());
        let limits = Limits {
            scrape_wait,
            ..quick()
        };
        let inner = Arc::clone(&gate);
        let server = Server::start(move || inner.pass(), limits);
        let scrapers = [(); 2].map(|()| {
            let mut client = Client::connect(server.address);
            client.request("GET", "/metrics", "");
            client
        });
        server.wait_for("both scrapes", |_| gate.begun.load(Ordering::SeqCst) == 2);
        (server, gate, scrapers)
    }

    #[test]
    fn a_third_scrape_gets_503_and_health_goes_on() {
        let (server, gate, mut scrapers) = gated(100 * MILLISECOND);
        let mut health = Client::connect(server.address);
        assert_eq!(health.get("/healthz", "").status, 200);
        let start = std::time::Instant::now();
        let mut third = Client::connect(server.address);
        let answer = third.get("/metrics", "");
        assert!(start.elapsed() >= 100 * MILLISECOND);
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.text(), "2 scrapes are under way already\n");
        assert_eq!(server.stats.scrapes_refused_total(), 1);
        gate.open();
        for scraper in &mut scrapers {
            assert_eq!(scraper.answer().status, 200);
        }
        assert_eq!(third.get("/metrics", "").status, 200);
        assert_eq!(server.stats.scrapes_refused_total(), 1);
    }

    #[test]
    fn a_third_scrape_waits_for_its_turn() {
        let (server, gate, _scrapers) = gated(Duration::from_secs(20));
        let mut third = Client::connect(server.address);
        third.request("GET", "/metrics", "");
        thread::sleep(50 * MILLISECOND);
        assert_eq!(gate.begun.load(Ordering::SeqCst), 2);
        gate.open();
        assert_eq!(third.answer().status, 200);
        assert_eq!(server.stats.scrapes_refused_total(), 0);
    }

    #[test]
    fn scrapers_that_leave_let_no_third_scrape_in() {
        let (server, gate, scrapers) = gated(50 * MILLISECOND);
        drop(scrapers);
        thread::sleep(50 * MILLISECOND);
        let mut third = Client::connect(server.address);
        assert_eq!(third.get("/metrics", "").status, 503);
        assert_eq!(gate.begun.load(Ordering::SeqCst), 2);
        gate.open();
    }

    #[test]
    fn the_65th_connection_takes_the_place_of_the_one_that_waited_longest() {
        let server = Server::start(String::new, quick());
        let mut clients: Vec<Client> = (0..MAX_CONNECTIONS)
            .map(|_| {
                let mut client = Client::connect(server.address);
                assert_eq!(client.get("/healthz", "").status, 200);
                client
            })
            .collect();
        // The oldest connection, but not the one that waited longest.
        assert_eq!(clients[0].get("/healthz", "").status, 200);
        let mut more = Vec::new();
        for (refused, longest) in (1..).zip(&mut clients[1..=3]) {
            let mut one_more = Client::connect(server.address);
            assert_eq!(one_more.get("/healthz", "").status, 200);
            assert_eq!(longest.rest(), b"");
            assert_eq!(server.stats.connections_refused_total(), refused);
            more.push(one_more);
        }
        for client in clients.iter_mut().skip(4).chain(&mut more) {
            assert_eq!(client.get("/healthz", "").status, 200);
        }
        assert_eq!(clients[0].get("/healthz", "").status, 200);
    }

    #[test]
    fn where_all_are_being_answered_the_65th_connection_is_refused() {
        let (server, gate, scrapers) = gated(Duration::from_secs(20));
        let mut waiting: Vec<Client> = (0..MAX_CONNECTIONS - scrapers.len())
            .map(|_| {
                let mut client = Client::connect(server.address);
                client.request("GET", "/metrics", "");
                client
            })
            .collect();
        thread::sleep(300 * MILLISECOND);
        for refused in 1..=3 {
            let mut one_more = Client::connect(server.address);
            let answer = one_more.answer();
            assert_eq!(answer.status, 503);
            assert_eq!(answer.header("retry-after"), Some("1"));
            assert_eq!(one_more.rest(), b"");
            assert_eq!(server.stats.connections_refused_total(), refused);
        }
        gate.open();
        assert_eq!(waiting[0].answer().status, 200);
        assert_eq!(
            Client::connect(server.address).get("/healthz", "").status,
            200
        );
    }

    #[test]
    fn only_those_who_were_let_in_are_busy() {
        let now = Instant::now();
        let head = Phase::Head(now);
        let request = Phase::Request {
            since: now,
            made: false,
        };
        for (phase, blocked, admitted, expected) in [
            (head, None, false, true),
            (Phase::Idle(now), None, false, true),
            (request, None, false, false),
            // The next request is read already, and the last answer is not.
            (request, Some(now), false, true),
            (head, None, true, false),
            (request, Some(now), true, false),
        ] {
            let standing = Standing {
                phase,
                blocked,
                admitted,
            };
            assert_eq!(standing.is_idler(), expected, "{standing:?}");
        }
    }

    #[test]
    fn those_who_hold_on_without_a_request_make_room() {
        let server = Server::start(String::new, quick());
        let mut active = Client::connect(server.address);
        assert_eq!(active.get("/healthz", "").status, 200);
        let mut idlers: Vec<Client> = (0..3 * MAX_CONNECTIONS)
            .map(|_| Client::connect(server.address))
            .collect();
        for _ in 0..10 {
            let mut other = Client::connect(server.address);
            assert_eq!(other.get("/healthz", "").status, 200);
        }
        // The oldest first, and never one that was active.
        assert_eq!(idlers[0].rest(), b"");
        assert_eq!(active.get("/healthz", "").status, 200);
        let least = 2 * MAX_CONNECTIONS as u64;
        let refused = server.stats.connections_refused_total();
        assert!((least..least + 12).contains(&refused), "{refused}");
        assert_eq!(server.stats.timeouts_total(), 0);
    }

    /// Set for the process in which a test may use up all file descriptors.
    const FEW_FILES: &str = "SENTRY_TEST_FEW_FILES";

    #[test]
    #[ignore = "started by the test below"]
    fn out_of_file_descriptors_inner() {
        if std::env::var_os(FEW_FILES).is_none() {
            return;
        }
        let limits = Limits {
            accept_pause: 20 * MILLISECOND,
            ..quick()
        };
        let server = Server::start(String::new, limits);
        let start = std::time::Instant::now();
        let mut sockets = Vec::new();
        while let Ok(socket) = StdStream::connect(server.address) {
            sockets.push(socket);
        }
        assert!(sockets.len() < MAX_CONNECTIONS, "{}", sockets.len());
        server.wait_for("five errors", |stats| stats.accept_errors_total() >= 5);
        let pauses = start.elapsed().as_millis() / 20;
        assert!(u128::from(server.stats.accept_errors_total()) <= pauses + 1);
        drop(sockets);
        let mut client = Client::connect(server.address);
        assert_eq!(client.get("/healthz", "").status, 200);
    }

    #[test]
    fn survives_running_out_of_file_descriptors() {
        let name = "expose::server::tests::out_of_file_descriptors_inner";
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 40 && exec \"$0\" --exact \"$1\" --ignored"])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(FEW_FILES, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
    }

    #[test]
    fn shutdown_lets_requests_end() {
        let (mut server, gate, mut scrapers) = gated(Duration::from_secs(20));
        let mut idle = Client::connect(server.address);
        assert_eq!(idle.get("/healthz", "").status, 200);
        server.stop();
        assert_eq!(idle.rest(), b"");
        assert!(StdStream::connect(server.address).is_err());
        gate.open();
        for scraper in &mut scrapers {
            assert_eq!(scraper.answer().status, 200);
            assert_eq!(scraper.rest(), b"");
        }
        server.join();
    }

    #[test]
    fn shutdown_does_not_wait_for_ever() {
        let (mut server, gate, mut scrapers) = gated(Duration::from_secs(20));
        let start = std::time::Instant::now();
        server.stop();
        server.join();
        let lasted = start.elapsed();
        assert!(lasted >= quick().drain, "{lasted:?}");
        assert!(
            lasted < quick().drain + Duration::from_secs(2),
            "{lasted:?}"
        );
        assert_eq!(scrapers[0].rest(), b"");
        gate.open();
    }
}
