//! For tests: a server on a port of its own, and a plain client that can also misbehave.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::format::Format;
use super::{
    Exposed, HttpStats, Limits, Parts, ProbeVerdict, Readiness, Scrape, View, bind, runtime, serve,
    web_config::WebConfig,
};
use crate::views::who::Id;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Limits of which none is met by accident, but short where a test has to wait for one.
pub(super) fn quick() -> Limits {
    Limits {
        drain: Duration::from_millis(300),
        scrape_wait: Duration::from_secs(10),
        ..Limits::default()
    }
}

/// Says the same in every format.
struct Scraped<F>(F);

impl<F: Fn() -> String + Send + Sync> Scrape for Scraped<F> {
    fn scrape(&self, _: Format) -> Parts {
        Box::new(std::iter::once((self.0)().into_bytes()))
    }
}

struct Probes {
    ready: Arc<Mutex<Result<String, String>>>,
    probes: Arc<Mutex<Vec<ProbeVerdict>>>,
}

impl Readiness for Probes {
    fn ready(&self) -> Result<String, String> {
        self.ready.lock().unwrap().clone()
    }

    fn probes(&self) -> Vec<ProbeVerdict> {
        self.probes.lock().unwrap().clone()
    }
}

/// Says what it was asked.
struct Asked;

impl View for Asked {
    fn status(&self) -> Vec<u8> {
        b"{\"status\":0}".to_vec()
    }

    fn workloads(&self) -> Vec<u8> {
        b"{\"workloads\":0}".to_vec()
    }

    fn events(&self) -> Vec<u8> {
        b"{\"events\":0}".to_vec()
    }

    fn history(&self, since: u64, workload: Option<Id>) -> Vec<u8> {
        let workload = serde_json::to_string(&workload).unwrap();
        format!("{{\"since\":{since},\"workload\":{workload}}}").into_bytes()
    }
}

/// A server that runs until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) stats: Arc<HttpStats>,
    /// What it says of its readiness.
    pub(super) ready: Arc<Mutex<Result<String, String>>>,
    /// What it says of its probes.
    pub(super) probes: Arc<Mutex<Vec<ProbeVerdict>>>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(
        scrape: impl Fn() -> String + Send + Sync + 'static,
        limits: Limits,
    ) -> Self {
        Self::start_at("/metrics", scrape, limits)
    }

    pub(super) fn start_at(
        path: &str,
        scrape: impl Fn() -> String + Send + Sync + 'static,
        limits: Limits,
    ) -> Self {
        Self::serve(path, Arc::new(Scraped(scrape)), limits)
    }

    /// Serves metrics that may differ by format.
    pub(super) fn serve(path: &str, scrape: Arc<dyn Scrape>, limits: Limits) -> Self {
        Self::run(path, scrape, limits, Arc::default(), None)
    }

    pub(super) fn start_with(
        path: &str,
        scrape: impl Fn() -> String + Send + Sync + 'static,
        limits: Limits,
        stats: Arc<HttpStats>,
        web: Option<Arc<WebConfig>>,
    ) -> Self {
        Self::run(path, Arc::new(Scraped(scrape)), limits, stats, web)
    }

    fn run(
        path: &str,
        scrape: Arc<dyn Scrape>,
        limits: Limits,
        stats: Arc<HttpStats>,
        web: Option<Arc<WebConfig>>,
    ) -> Self {
        let ready = Arc::new(Mutex::new(Err("no probe is attached".to_owned())));
        let probes = Arc::default();
        let exposed = Exposed {
            scrape,
            readiness: Arc::new(Probes {
                ready: Arc::clone(&ready),
                probes: Arc::clone(&probes),
            }),
            views: Arc::new(Asked),
            stats: Arc::clone(&stats),
            telemetry_path: path.parse().unwrap(),
            limits,
            web,
            reload: None,
        };
        let (shutdown, stopped) = oneshot::channel();
        let (bound, address) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = runtime().unwrap();
            runtime.block_on(async {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let listener = bind(any, Path::new("/proc")).await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, exposed, stopped).await;
            });
            runtime.shutdown_background();
        });
        Self {
            address: address.recv().unwrap(),
            stats,
            ready,
            probes,
            shutdown: Some(shutdown),
            thread: Some(thread),
        }
    }

    pub(super) fn stop(&mut self) {
        let _ = self.shutdown.take().map(|shutdown| shutdown.send(()));
    }

    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(super) fn wait_for(&self, what: &str, condition: impl Fn(&HttpStats) -> bool) {
        let start = Instant::now();
        while !condition(&self.stats) {
            assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An answer, its body decoded from chunks but not from gzip.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Answer {
    /// The header's value, if it is there exactly once.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        match self.headers(name).as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }

    pub(super) fn headers(&self, name: &str) -> Vec<&str> {
        let headers = self.headers.iter().filter(|(known, _)| known == name);
        let mut values: Vec<&str> = headers.map(|(_, value)| value.as_str()).collect();
        values.sort_unstable();
        values
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// What a connection reads from and writes to: a socket, or TLS over one.
pub(super) trait Transport: Read + Write {}

impl<T: Read + Write> Transport for T {}

/// One connection.
pub(super) struct Client(BufReader<Box<dyn Transport>>);

/// A socket that gives up after a while.
pub(super) fn socket(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> Self {
        Self::over(socket(address))
    }

    pub(super) fn over(transport: impl Transport + 'static) -> Self {
        Self(BufReader::new(Box::new(transport)))
    }

    /// Whether the bytes could be sent.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.get_mut().write_all(bytes).is_ok()
    }

    /// Sends the head of a request; `headers` are whole lines.
    pub(super) fn request(&mut self, method: &str, path: &str, headers: &str) {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        // A server that refuses early may have closed already; its answer tells.
        let _ = self.send(head.as_bytes());
    }

    pub(super) fn get(&mut self, path: &str, headers: &str) -> Answer {
        self.request("GET", path, headers);
        self.answer()
    }

    /// Reads an answer without a body, as to HEAD.
    pub(super) fn head(&mut self) -> Answer {
        let status = self.line();
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Answer {
            status,
            headers,
            body: Vec::new(),
        }
    }

    pub(super) fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(&self.line(), 16).unwrap();
                self.body(size, &mut answer.body);
                assert_eq!(self.line(), "");
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap();
            self.body(length, &mut answer.body);
        }
        answer
    }

    fn body(&mut self, length: usize, body: &mut Vec<u8>) {
        let start = body.len();
        body.resize(start + length, 0);
        self.0.read_exact(&mut body[start..]).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Everything until the server closes. A reset after the last byte is a close, too.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => rest,
        }
    }

    /// How many bytes came until the connection ended, and whether it ended in a reset.
    pub(super) fn drain(&mut self) -> (u64, bool) {
        let mut read = 0;
        loop {
            match self.0.get_mut().read(&mut [0; 8192]) {
                Ok(0) => return (read, false),
                Ok(n) => read += n as u64,
                Err(error) => return (read, error.kind() == io::ErrorKind::ConnectionReset),
            }
        }
    }

    /// Reads once, up to `at_most` bytes; `None` at the end of the connection.
    pub(super) fn read_some(&mut self, at_most: usize) -> Option<usize> {
        let read = self.0.get_mut().read(&mut vec![0; at_most]).ok();
        read.filter(|read| *read > 0)
    }
}

/// Sample lines that hardly compress.
pub(super) fn noise(bytes: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = String::with_capacity(bytes + 32);
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let _ = writeln!(text, "x{state:x} {state}");
    }
    text
}

pub(super) fn inflate(compressed: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(compressed)
        .read_to_string(&mut text)
        .unwrap();
    text
}
