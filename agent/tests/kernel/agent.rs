//! The agent as a process, and the little HTTP that it takes to read it.

use crate::exposition::{Exposition, Format};
use crate::host::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The agent's program.
pub(crate) const SENTRY: &str = env!("CARGO_BIN_EXE_sentry");

/// How long the agent may take to its first scrape: a debug build parses the kernel's types for half a second when it
/// has a core for itself.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How long one answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// How long the end may take: the kernel waits for each uprobe that it lets go of, on an emulated CPU for long.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// A command of the agent's program, with these arguments and no settings from the environment.
pub(crate) fn sentry(args: &str) -> Command {
    let mut command = Command::new(SENTRY);
    without_settings(&mut command).args(args.split_whitespace());
    command
}

/// Takes the settings of `SENTRY_` variables away, which would be the agent's as well.
pub(crate) fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SENTRY_") {
            command.env_remove(name);
        }
    }
    command
}

/// What a process prints, taken in by a thread of its own.
pub(crate) struct Printed {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Printed {
    pub(crate) fn follow(stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            while lines
                .read_until(b'\n', &mut line)
                .is_ok_and(|read| read > 0)
            {
                into.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { text, reader }
    }

    pub(crate) fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    pub(crate) fn all(self) -> String {
        self.reader.join().unwrap();
        Arc::try_unwrap(self.text).unwrap().into_inner().unwrap()
    }
}

/// A running agent. Killed on drop, should a test fail before it stops it.
pub(crate) struct Agent {
    process: Child,
    printed: Option<[Printed; 2]>,
    address: SocketAddr,
    pid: u32,
}

/// How an agent ended, and what it had printed.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// From the signal to the end.
    pub(crate) took: Duration,
}

impl Agent {
    /// Starts it on a free port, with these flags.
    pub(crate) fn start(flags: &str) -> Self {
        Self::spawn(sentry(flags))
    }

    /// Starts it on a free port by a command that ends up as the agent.
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.args(["--web.listen-address", "127.0.0.1:0"]);
        Self::spawn_as(command)
    }

    /// Starts it by a command that names the address to listen on. Standard input is as the command has it.
    pub(crate) fn spawn_as(mut command: Command) -> Self {
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = Printed::follow(process.stdout.take().unwrap());
        let stderr = Printed::follow(process.stderr.take().unwrap());
        let mut agent = Self {
            pid: process.id(),
            process,
            printed: Some([stdout, stderr]),
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        };
        agent.address = wait_for("agent that serves", START_PATIENCE, || {
            let [_, stderr] = agent.printed.as_ref().unwrap();
            let log = stderr.text();
            let ended = agent.process.try_wait().unwrap();
            assert_eq!(ended, None, "the agent ended: {log}");
            let (_, url) = log.split_once("serving http")?;
            let (_, url) = url.split_once("://")?;
            Some(url.split_once('/')?.0.parse().unwrap())
        });
        agent
    }

    /// The same, where what was started is but the parent of the agent, in whose network it has this address.
    pub(crate) fn inside(mut self, pid: u32, address: IpAddr) -> Self {
        self.pid = pid;
        self.address.set_ip(address);
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.printed.as_ref().unwrap()[1].text()
    }

    /// Asks for a path, with these header lines.
    pub(crate) fn get(&self, path: &str, headers: &[&str]) -> Response {
        get(self.address, path, headers)
    }

    /// What `/metrics` says now.
    pub(crate) fn scrape(&self) -> Exposition {
        let response = self.get("/metrics", &[]);
        assert_eq!(response.status, 200);
        Exposition::parse(&response.text(), Format::Text)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ends it by a signal.
    pub(crate) fn end(mut self, signal: Signal) -> End {
        let start = Instant::now();
        self.signal(signal);
        let status = wait_for("end of the agent", END_PATIENCE, || {
            self.process.try_wait().unwrap()
        });
        let took = start.elapsed();
        let [stdout, stderr] = self.printed.take().unwrap().map(Printed::all);
        End {
            status,
            stdout,
            stderr,
            took,
        }
    }

    /// Ends it as an init system does, and asserts that nothing went wrong in its life.
    pub(crate) fn stop(self) {
        let End {
            status,
            stdout,
            stderr,
            ..
        } = self.end(Signal::TERM);
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert_eq!(stdout, "");
        for bad in ["panicked", "ERROR"] {
            assert!(!stderr.contains(bad), "{stderr}");
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// Asks a server for a path and reads the whole answer.
pub(crate) fn get(address: SocketAddr, path: &str, headers: &[&str]) -> Response {
    request(address, "GET", path, headers)
}

/// The same by another method, without a body.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, headers: &[&str]) -> Response {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_PATIENCE).unwrap();
    stream.set_read_timeout(Some(ANSWER_PATIENCE)).unwrap();
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_lowercase(), value.trim().to_owned())
        })
        .collect();
    let mut response = Response {
        status: status.parse().unwrap(),
        headers,
        body: answer.split_off(end + 4),
    };
    if response.header("transfer-encoding") == Some("chunked") {
        response.body = dechunked(&response.body);
    }
    response
}

fn dechunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|bytes| bytes == b"\r\n").unwrap();
        let size = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        body = &body[end + 2..];
        if size == 0 {
            return whole;
        }
        whole.extend(&body[..size]);
        body = &body[size + 2..];
    }
}
