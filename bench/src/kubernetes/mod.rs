//! A Kubernetes API server for tests: pods, which can be listed and watched, over HTTP/1.1 or TLS, on
//! loopback unless told otherwise.
//!
//! It does what clients of a real one rely on: field selectors, pages, versions, watches with bookmarks that end in time
//! and tell `410 Gone` when their version is no longer in the history. And it misbehaves when told to: see [`Fault`] and
//! [`Cut`].

mod http;
mod pod;
mod tls;

pub use pod::{Container, Pod};

use crate::{Error, Result};
use http::{Connection, Request, Stream};
use rustix::net::Shutdown;
use serde_json::json;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tls::Identity;

/// The only path there is.
const PATH: &str = "/api/v1/pods";

/// How an [`ApiServer`] is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address of this machine to listen on.
    pub address: IpAddr,
    /// Speaks TLS, with a certificate of its own authority for that address, 127.0.0.1 and `localhost`.
    pub tls: bool,
    /// The bearer token that is asked for.
    pub token: Option<String>,
    /// Changes that a watch can go back.
    pub history: usize,
    /// Pods in one answer at most, whatever was asked for.
    pub page: usize,
    /// How often a watch without news gets a bookmark.
    pub bookmarks: Duration,
    /// When a watch is ended, at the latest.
    pub watch: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            tls: false,
            token: None,
            history: 1000,
            page: usize::MAX,
            bookmarks: Duration::from_secs(60),
            watch: Duration::from_secs(300),
        }
    }
}

/// What becomes of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Each is answered with this status and a `Status` object.
    Answer(u16),
    /// None is answered until the fault is over.
    Hang,
}

/// How open watches end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// As they do when their time is over.
    End,
    /// The connection closes within an event.
    MidLine,
    /// With an event that says `410 Gone`.
    Expired,
}

/// A running API server. It stops when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    listener: Arc<TcpListener>,
    accepts: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    identity: Option<Identity>,
    state: Mutex<State>,
    /// Something in the state has changed.
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    token: Option<String>,
    version: u64,
    /// By namespace and name.
    pods: BTreeMap<(String, String), Stored>,
    history: VecDeque<Change>,
    /// The last change that is no longer in the history.
    forgotten: u64,
    /// No watch is opened from before this version.
    compacted: u64,
    fault: Option<Fault>,
    stopping: bool,
    /// Counts the cuts; a watch notices that there was one.
    cuts: u64,
    cut: Option<Cut>,
    bookmarks: u64,
    connections: HashMap<u64, TcpStream>,
    connected: u64,
    watching: usize,
    requests: Vec<String>,
}

#[derive(Debug, Clone)]
struct Stored {
    node: String,
    json: Arc<str>,
}

#[derive(Debug, Clone)]
struct Change {
    version: u64,
    /// Before it and after it.
    was_on: Option<String>,
    is_on: Option<String>,
    json: Arc<str>,
}

/// How far a watch has come.
struct Watching {
    /// The last version that it knows.
    seen: u64,
    /// As many cuts and bookmarks as there were before it.
    cuts: u64,
    bookmarked: u64,
    /// Bookmarks were asked for.
    bookmarks: bool,
    ends: Instant,
}

impl ApiServer {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When no port, thread or certificate can be had.
    pub fn start(options: Options) -> Result<Self> {
        let address = options.address;
        let identity = options.tls.then(|| Identity::new(address)).transpose()?;
        let state = State {
            token: options.token.clone(),
            version: 1000,
            ..State::default()
        };
        let mut server = Self {
            shared: Arc::new(Shared {
                options,
                identity,
                state: Mutex::new(state),
                news: Condvar::new(),
            }),
            address: SocketAddr::new(address, 0),
            running: None,
        };
        server.resume()?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client is told: `http://127.0.0.1:PORT`, or `https`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.shared.options.tls {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate of the authority that clients must trust, as PEM; none without TLS.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        Some(&self.shared.identity.as_ref()?.authority)
    }

    /// The text of a kubeconfig for this server and its present token. It names no file but that of the authority, which
    /// the caller writes.
    #[must_use]
    pub fn kubeconfig(&self, authority: &str) -> String {
        let mut cluster = format!("{{server: '{}'", self.url());
        if self.shared.options.tls {
            let _ = write!(cluster, ", certificate-authority: '{authority}'");
        }
        let user = match &self.state().token {
            Some(token) => format!("{{token: '{token}'}}"),
            None => "{}".to_owned(),
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {cluster}}}}}]\n\
             users: [{{name: test, user: {user}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
        )
    }

    /// Adds a pod, or changes the one of its namespace and name.
    pub fn apply(&self, pod: &Pod) {
        self.change(|state, version| {
            let json: Arc<str> = Arc::from(pod.json(version));
            let stored = Stored {
                node: pod.node.clone(),
                json: Arc::clone(&json),
            };
            let key = (pod.namespace.clone(), pod.name.clone());
            let before = state.pods.insert(key, stored);
            Some(Change {
                version,
                was_on: before.map(|before| before.node),
                is_on: Some(pod.node.clone()),
                json,
            })
        });
    }

    /// Deletes a pod, if it is there.
    pub fn delete(&self, pod: &Pod) {
        self.change(|state, version| {
            let key = (pod.namespace.clone(), pod.name.clone());
            let before = state.pods.remove(&key)?;
            Some(Change {
                version,
                was_on: Some(before.node),
                is_on: None,
                json: Arc::from(pod.json(version)),
            })
        });
    }

    fn change(&self, make: impl FnOnce(&mut State, u64) -> Option<Change>) {
        let mut state = self.state();
        let version = state.version + 1;
        if let Some(change) = make(&mut state, version) {
            state.version = version;
            state.history.push_back(change);
            while state.history.len() > self.shared.options.history {
                if let Some(forgotten) = state.history.pop_front() {
                    state.forgotten = forgotten.version;
                }
            }
        }
        drop(state);
        self.shared.news.notify_all();
    }

    /// Watches that are opened from now on from an earlier version than the present one are told `410 Gone`.
    pub fn compact(&self) {
        let mut state = self.state();
        // Something unrelated changes too, or a client that saw the last change would be current.
        state.version += 1;
        state.compacted = state.version;
    }

    /// From now on requests fail so, or none do.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
        self.shared.news.notify_all();
    }

    /// From now on another token is asked for.
    pub fn set_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Ends all open watches.
    pub fn cut_watches(&self, cut: Cut) {
        let mut state = self.state();
        state.cuts += 1;
        state.cut = Some(cut);
        drop(state);
        self.shared.news.notify_all();
    }

    /// Sends a bookmark to all open watches.
    pub fn bookmark(&self) {
        self.state().bookmarks += 1;
        self.shared.news.notify_all();
    }

    /// Targets of all requests so far, with their queries: `/api/v1/pods?fieldSelector=...`, decoded.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// Watches that are open.
    #[must_use]
    pub fn watching(&self) -> usize {
        self.state().watching
    }

    /// Goes away: nobody listens on the port any more, and all connections are closed.
    pub fn stop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        {
            let mut state = self.state();
            state.stopping = true;
            for connection in state.connections.values() {
                let _ = connection.shutdown(std::net::Shutdown::Both);
            }
        }
        self.shared.news.notify_all();
        let _ = rustix::net::shutdown(&*running.listener, Shutdown::Both);
        let _ = running.accepts.join();
        let mut state = self.state();
        while state.connections.values().len() > 0 {
            state = self.shared.wait(state, Duration::from_millis(10));
        }
    }

    /// Comes back on the same port, with the pods that it has.
    ///
    /// # Errors
    /// When the port is taken meanwhile.
    pub fn resume(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let listen = || -> io::Result<_> {
            let listener = Arc::new(TcpListener::bind(self.address)?);
            let address = listener.local_addr()?;
            self.state().stopping = false;
            let (shared, accepting) = (Arc::clone(&self.shared), Arc::clone(&listener));
            let accepts = thread::Builder::new()
                .name("api-server".to_owned())
                .spawn(move || shared.accept(&accepting))?;
            Ok((address, Running { listener, accepts }))
        };
        let action = format!("listen on {}", self.address);
        let (address, running) = listen().map_err(Error::io(action))?;
        self.address = address;
        self.running = Some(running);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, timeout: Duration) -> MutexGuard<'s, State> {
        let (state, _) = self
            .news
            .wait_timeout(state, timeout)
            .unwrap_or_else(PoisonError::into_inner);
        state
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        while let Ok((socket, _)) = listener.accept() {
            let Ok(closer) = socket.try_clone() else {
                continue;
            };
            let id = {
                let mut state = self.state();
                if state.stopping {
                    return;
                }
                state.connected += 1;
                let id = state.connected;
                state.connections.insert(id, closer);
                id
            };
            let shared = Arc::clone(&self);
            let serve = move || {
                // A client that hangs up in the middle is no news.
                let _ = shared.serve(socket);
                if let Some(socket) = shared.state().connections.remove(&id) {
                    let _ = socket.shutdown(std::net::Shutdown::Both);
                }
                shared.news.notify_all();
            };
            if thread::Builder::new()
                .name("api-client".to_owned())
                .spawn(serve)
                .is_err()
            {
                self.state().connections.remove(&id);
            }
        }
    }

    fn serve(&self, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.identity {
            Some(identity) => Box::new(identity.accept(socket)?),
            None => Box::new(socket),
        };
        let mut connection = Connection::new(stream);
        while let Some(request) = connection.request()? {
            self.answer(&mut connection, &request)?;
        }
        Ok(())
    }

    fn answer(&self, connection: &mut Connection, request: &Request) -> io::Result<()> {
        let (fault, authorized) = {
            let mut state = self.state();
            state.requests.push(request.to_string());
            while state.fault == Some(Fault::Hang) && !state.stopping {
                state = self.wait(state, Duration::from_secs(1));
            }
            let asked = state.token.as_ref().map(|token| format!("Bearer {token}"));
            let authorized = asked.is_none() || asked == request.authorization;
            (state.fault, authorized)
        };
        if let Some(Fault::Answer(code)) = fault {
            return connection.status(code, &status(code, "as the test wants it"));
        }
        if !authorized {
            return connection.status(401, &status(401, "Unauthorized"));
        }
        if request.path != PATH {
            let message = "the server could not find the requested resource";
            return connection.status(404, &status(404, message));
        }
        if request.method != "GET" {
            let message = "the server does not allow this method on the requested resource";
            return connection.status(405, &status(405, message));
        }
        let node = match selected_node(request.parameter("fieldSelector")) {
            Ok(node) => node,
            Err(message) => return connection.status(400, &status(400, &message)),
        };
        if matches!(request.parameter("watch"), Some("true" | "1")) {
            self.watch(connection, request, node)
        } else {
            self.list(connection, request, node)
        }
    }

    fn list(
        &self,
        connection: &mut Connection,
        request: &Request,
        node: Option<&str>,
    ) -> io::Result<()> {
        // A page goes on after the pod that its token names.
        let after: Option<(String, String)> = request
            .parameter("continue")
            .and_then(|token| token.split_once('/'))
            .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        // As a real one does, a list from the cache (version 0) pays no heed to the limit.
        let limit = match (
            request.parameter("resourceVersion"),
            request.parameter("limit"),
        ) {
            (Some("0"), _) | (_, None) => usize::MAX,
            (_, Some(limit)) => limit.parse().unwrap_or(usize::MAX),
        };
        let limit = limit.min(self.options.page);
        let (version, page, rest) = {
            let state = self.state();
            let mut selected = state
                .pods
                .iter()
                .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after))
                .filter(|(_, pod)| node.is_none_or(|node| pod.node == node));
            let page: Vec<_> = selected
                .by_ref()
                .take(limit)
                .map(|(key, pod)| (key.clone(), pod.clone()))
                .collect();
            (state.version, page, selected.count())
        };
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if rest > 0
            && let Some(((namespace, name), _)) = page.last()
        {
            metadata["continue"] = json!(format!("{namespace}/{name}"));
            metadata["remainingItemCount"] = json!(rest);
        }
        connection.begin()?;
        connection.chunk(&format!(
            r#"{{"kind":"PodList","apiVersion":"v1","metadata":{metadata},"items":["#
        ))?;
        let mut separator = "";
        for (_, pod) in &page {
            connection.chunk(&format!("{separator}{}", pod.json))?;
            separator = ",";
        }
        connection.chunk("]}\n")?;
        connection.end()
    }

    fn watch(
        &self,
        connection: &mut Connection,
        request: &Request,
        node: Option<&str>,
    ) -> io::Result<()> {
        let asked = request
            .parameter("timeoutSeconds")
            .and_then(|text| text.parse().ok());
        let limit = asked.map_or(self.options.watch, |seconds| {
            self.options.watch.min(Duration::from_secs(seconds))
        });
        // As of now, before the client knows that the watch is open: what is done after that is news to it.
        let mut state = self.state();
        let watch = Watching {
            seen: match request.parameter("resourceVersion").map(str::parse::<u64>) {
                Some(Ok(version)) if version > 0 => version,
                _ => state.version,
            },
            cuts: state.cuts,
            bookmarked: state.bookmarks,
            bookmarks: request.parameter("allowWatchBookmarks") == Some("true"),
            ends: Instant::now() + limit,
        };
        let gone = watch.seen < state.compacted;
        state.watching += usize::from(!gone);
        drop(state);
        if gone {
            connection.begin()?;
            return cut_off(connection, Cut::Expired);
        }
        let outcome = self.tell(connection, watch, node);
        self.state().watching -= 1;
        outcome
    }

    /// Tells what changes until the watch ends.
    fn tell(
        &self,
        connection: &mut Connection,
        mut watch: Watching,
        node: Option<&str>,
    ) -> io::Result<()> {
        connection.begin()?;
        let mut bookmark_due = Instant::now() + self.options.bookmarks;
        loop {
            let mut state = self.state();
            if state.stopping {
                return Ok(());
            }
            if watch.seen < state.forgotten {
                drop(state);
                return cut_off(connection, Cut::Expired);
            }
            let news: Vec<String> = state
                .history
                .iter()
                .filter(|change| change.version > watch.seen)
                .filter_map(|change| change.seen_on(node))
                .collect();
            watch.seen = state.version;
            let now = Instant::now();
            let bookmark =
                watch.bookmarks && (now >= bookmark_due || state.bookmarks != watch.bookmarked);
            watch.bookmarked = state.bookmarks;
            let cut = if state.cuts == watch.cuts {
                None
            } else {
                state.cut
            };
            let over = cut.or((now >= watch.ends).then_some(Cut::End));
            if news.is_empty() && !bookmark && over.is_none() {
                let next = if watch.bookmarks {
                    watch.ends.min(bookmark_due)
                } else {
                    watch.ends
                };
                state = self.wait(state, next.saturating_duration_since(now));
                drop(state);
                continue;
            }
            drop(state);
            let mut text = news.concat();
            if bookmark {
                bookmark_due = now + self.options.bookmarks;
                let _ = writeln!(
                    text,
                    r#"{{"type":"BOOKMARK","object":{{"kind":"Pod","apiVersion":"v1","metadata":{{"resourceVersion":"{}","creationTimestamp":null}},"spec":{{"containers":null}},"status":{{}}}}}}"#,
                    watch.seen
                );
            }
            if !text.is_empty() {
                connection.chunk(&text)?;
            }
            if let Some(over) = over {
                return cut_off(connection, over);
            }
        }
    }
}

impl Change {
    /// The line of a watch of this node's pods, or of all; none when it is not among them.
    fn seen_on(&self, node: Option<&str>) -> Option<String> {
        let selects = |on: &Option<String>| {
            on.as_deref()
                .is_some_and(|on| node.is_none_or(|node| node == on))
        };
        let kind = match (selects(&self.was_on), selects(&self.is_on)) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some(format!(
            "{{\"type\":\"{kind}\",\"object\":{}}}\n",
            self.json
        ))
    }
}

/// The node that a field selector asks for; none without one.
fn selected_node(selector: Option<&str>) -> std::result::Result<Option<&str>, String> {
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
        return Ok(None);
    };
    selector
        .strip_prefix("spec.nodeName=")
        .map(|node| Some(node.trim_start_matches('=')))
        .ok_or_else(|| format!("field label not supported: {selector}"))
}

/// Ends a watch.
fn cut_off(connection: &mut Connection, cut: Cut) -> io::Result<()> {
    match cut {
        Cut::End => connection.end(),
        Cut::MidLine => {
            connection
                .chunk(r#"{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"name":"ha"#)?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Cut::Expired => {
            let object = status(410, "too old resource version");
            connection.chunk(&format!("{{\"type\":\"ERROR\",\"object\":{object}}}\n"))?;
            connection.end()
        }
    }
}

/// A `Status` object, as the API server answers instead of what was asked for.
fn status(code: u16, message: &str) -> String {
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        410 => "Expired",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        _ => "",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code})
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::io::{BufRead, BufReader, Read, Write};

    fn get(server: &ApiServer, target: &str, more: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nhost: x\r\n{more}\r\n").unwrap();
        BufReader::new(stream)
    }

    fn line(reader: &mut impl BufRead) -> String {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Status line, and the body without its frames.
    fn answer(mut reader: BufReader<TcpStream>) -> (String, Value) {
        let status = line(&mut reader);
        let mut length = None;
        loop {
            let header = line(&mut reader);
            if header.is_empty() {
                break;
            }
            if let Some(bytes) = header.strip_prefix("content-length: ") {
                length = bytes.parse::<usize>().ok();
            }
        }
        let mut body = Vec::new();
        if let Some(length) = length {
            body.resize(length, 0);
            reader.read_exact(&mut body).unwrap();
        } else {
            while let Some(chunk) = chunk(&mut reader) {
                body.extend_from_slice(chunk.as_bytes());
            }
        }
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn chunk(reader: &mut impl BufRead) -> Option<String> {
        let length = usize::from_str_radix(&line(reader), 16).unwrap();
        let mut bytes = vec![0; length + 2];
        reader.read_exact(&mut bytes).unwrap();
        bytes.truncate(length);
        (length > 0).then(|| String::from_utf8(bytes).unwrap())
    }

    fn names(list: &Value) -> Vec<&str> {
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .map(|pod| pod["metadata"]["name"].as_str().unwrap())
            .collect()
    }

    fn server() -> ApiServer {
        let server = ApiServer::start(Options::default()).unwrap();
        for (node, name) in [("n1", "a"), ("n2", "b"), ("n1", "c"), ("n1", "d")] {
            server.apply(&Pod::new(node, "ns", name, name));
        }
        server
    }

    #[test]
    fn lists_have_selectors_and_pages() {
        let server = server();
        let (status, list) = answer(get(
            &server,
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1&resourceVersion=0&limit=1",
            "",
        ));
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert_eq!(names(&list), ["a", "c", "d"]);
        assert_eq!(list["metadata"]["resourceVersion"], "1004");
        let (_, page) = answer(get(&server, "/api/v1/pods?limit=3", ""));
        assert_eq!(names(&page), ["a", "b", "c"]);
        assert_eq!(page["metadata"]["continue"], "ns/c");
        let (_, page) = answer(get(&server, "/api/v1/pods?limit=3&continue=ns%2Fc", ""));
        assert_eq!(names(&page), ["d"]);
        assert_eq!(page["metadata"]["continue"], Value::Null);
    }

    #[test]
    fn what_is_not_served_is_refused() {
        let server = server();
        for (target, code) in [
            ("/api/v1/nodes", 404),
            ("/api/v1/pods?fieldSelector=status.phase%3DRunning", 400),
        ] {
            let (_, status) = answer(get(&server, target, ""));
            assert_eq!(status["code"], code, "{target}");
        }
        server.set_token("t1");
        assert_eq!(answer(get(&server, PATH, "")).1["code"], 401);
        assert_eq!(
            answer(get(&server, PATH, "Authorization: Bearer t0\r\n")).1["code"],
            401
        );
        assert_eq!(
            answer(get(&server, PATH, "Authorization: Bearer t1\r\n")).1["kind"],
            "PodList"
        );
        server.set_fault(Some(Fault::Answer(403)));
        let (status, body) = answer(get(&server, PATH, ""));
        assert_eq!(
            (status.as_str(), &body["reason"]),
            ("HTTP/1.1 403 -", &json!("Forbidden"))
        );
    }

    #[test]
    fn a_watch_tells_what_changes_and_what_is_gone() {
        let mut server = server();
        let target = "/api/v1/pods?watch=true&allowWatchBookmarks=true&resourceVersion=1002&fieldSelector=spec.nodeName%3Dn1";
        let mut watch = get(&server, target, "");
        while !line(&mut watch).is_empty() {}
        let mut kinds = Vec::new();
        let mut take = |watch: &mut BufReader<TcpStream>, lines: usize| {
            while kinds.len() < lines {
                for line in chunk(watch).unwrap().lines() {
                    let event: Value = serde_json::from_str(line).unwrap();
                    let metadata = &event["object"]["metadata"];
                    kinds.push(
                        format!(
                            "{} {} {}",
                            event["type"], metadata["name"], metadata["resourceVersion"]
                        )
                        .replace('"', ""),
                    );
                }
            }
            std::mem::take(&mut kinds)
        };
        assert_eq!(take(&mut watch, 2), ["ADDED c 1003", "ADDED d 1004"]);
        server.apply(&Pod::new("n1", "ns", "c", "c").labelled("a", "b"));
        server.apply(&Pod::new("n2", "ns", "b", "b").labelled("a", "b"));
        server.delete(&Pod::new("n1", "ns", "d", "d"));
        server.delete(&Pod::new("n1", "ns", "nobody", "x"));
        assert_eq!(take(&mut watch, 2), ["MODIFIED c 1005", "DELETED d 1007"]);
        server.bookmark();
        assert_eq!(take(&mut watch, 1), ["BOOKMARK null 1007"]);
        server.compact();
        server.apply(&Pod::new("n1", "ns", "e", "e"));
        assert_eq!(take(&mut watch, 1), ["ADDED e 1009"]);
        assert_eq!(server.watching(), 1);
        server.cut_watches(Cut::End);
        assert_eq!(chunk(&mut watch), None);

        let mut watch = get(&server, &target.replace("1002", "1007"), "");
        while !line(&mut watch).is_empty() {}
        let gone: Value = serde_json::from_str(&chunk(&mut watch).unwrap()).unwrap();
        assert_eq!(
            (&gone["type"], &gone["object"]["code"]),
            (&json!("ERROR"), &json!(410))
        );

        let mut watch = get(&server, &target.replace("1002", "1009"), "");
        while !line(&mut watch).is_empty() {}
        server.cut_watches(Cut::MidLine);
        assert!(
            serde_json::from_str::<Value>(&chunk(&mut watch).unwrap())
                .unwrap_err()
                .is_eof()
        );
        assert_eq!(line(&mut watch), "");

        let address = server.address();
        server.stop();
        assert!(TcpStream::connect(address).is_err());
        server.resume().unwrap();
        assert_eq!(server.address(), address);
        assert_eq!(
            names(&answer(get(&server, PATH, "")).1),
            ["a", "b", "c", "e"]
        );
        assert_eq!(server.requests().last().unwrap(), PATH);
    }
}
