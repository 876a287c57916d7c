//! `sentry top` in a real terminal: tmux.

use crate::agent::{Agent, SENTRY, sentry, without_settings};
use crate::gpu::shared_program;
use crate::host::{
    Folder, IoController, disk_cgroup, in_cgroup, label, output, skipped, socket_cgroup, take_turn,
    wait_for,
};
use crate::load::{self, Server, assert_all};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sentry_bench::sandbox::LoopDevice;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ends a test where there is no tmux; else it is this test's turn until its end.
macro_rules! terminal_turn {
    ($test:literal) => {
        let Some(_turn) = take_turn($test) else {
            return;
        };
        let mut asked = Command::new("tmux");
        if asked.arg("-V").stdout(Stdio::null()).status().is_err() {
            skipped($test, "no tmux");
            return;
        }
    };
}

/// A terminal of 80x24 with a shell in it, of a server of its own.
struct Terminal(Folder);

impl Terminal {
    fn new() -> Self {
        let terminal = Self(Folder::new());
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        // Nobody else's prompt, nor their editor.
        terminal.shell("PS1='$ '; stty -g >before");
        terminal.ready();
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = Command::new("tmux");
        without_settings(&mut command);
        command.arg("-S").arg(self.0.path().join("socket"));
        command.args(["-f", "/dev/null"]).args(args);
        // One in which the tests run is none of ours.
        command.env_remove("TMUX").env_remove("ENV");
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command.current_dir(self.0.path());
        let output = output(command);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tmux {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn shell(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.keys(&["Enter"]);
    }

    /// Keys by tmux's names.
    fn keys(&self, keys: &[&str]) {
        let mut args = vec!["send-keys"];
        args.extend(keys);
        self.tmux(&args);
    }

    /// Lines as they are seen, without the blanks at their ends.
    fn lines(&self) -> Vec<String> {
        let screen = self.tmux(&["capture-pane", "-p"]);
        screen
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    /// Waits until a screen is as wanted.
    fn until(&self, what: &str, is: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut last = Vec::new();
        for _ in 0..PATIENCE.as_millis() / 50 {
            last = self.lines();
            if is(&last) {
                return last;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no {what}:\n{}", last.join("\n"));
    }

    /// Waits until text is on the screen; the screen.
    fn until_text(&self, text: &str) -> Vec<String> {
        self.until(text, |lines| lines.iter().any(|line| line.contains(text)))
    }

    fn resize(&self, width: &str, height: &str) {
        self.tmux(&["resize-window", "-x", width, "-y", height]);
    }

    /// Whether a program has the alternate screen, the cursor is seen, and keys reach the shell in lines.
    fn state(&self) -> String {
        let state = self.tmux(&[
            "display-message",
            "-p",
            "#{alternate_on} #{cursor_flag} #{mouse_any_flag}",
        ]);
        state.trim().to_owned()
    }

    /// Waits for the shell, and asserts that the terminal is as it was.
    fn ready(&self) {
        let marker = self.0.path().join("after");
        let _ = fs::remove_file(&marker);
        self.shell("stty -g >after.new; mv after.new after");
        wait_for("shell", PATIENCE, || marker.exists().then_some(()));
        let read = |name: &str| fs::read_to_string(self.0.path().join(name)).unwrap();
        assert_eq!(read("after"), read("before"));
        assert_eq!(self.state(), "0 1 0");
    }

    /// Starts it and waits until it has the screen; its process.
    fn top(&self, args: &str) -> Pid {
        let pid = self.0.path().join("pid");
        let _ = fs::remove_file(&pid);
        self.shell(&format!(
            "sh -c 'echo $$ >pid; exec {SENTRY} top {args}'; echo $? >code"
        ));
        self.until_text("q quit");
        assert_eq!(self.state(), "1 0 0");
        let pid = fs::read_to_string(pid).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
    }

    /// Waits for its end, and asserts that it has left everything as it was.
    fn ended(&self, code: &str) {
        let path = self.0.path().join("code");
        wait_for("end", PATIENCE, || path.exists().then_some(()));
        self.ready();
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), code);
        fs::remove_file(path).unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.0.path().join("socket"));
        let _ = command.arg("kill-server").stderr(Stdio::null()).status();
    }
}

/// The words of the row whose name has this in it.
fn row(lines: &[String], name: &str) -> Option<Vec<String>> {
    let found = lines.iter().find(|line| {
        let mut words = line.split_whitespace();
        words.any(|word| word.contains(name)) && !line.starts_with("cgroup=")
    });
    found.map(|line| line.split_whitespace().map(str::to_owned).collect())
}

fn last(words: &[String], count: usize) -> Vec<&str> {
    let from = words.len().saturating_sub(count);
    words[from..].iter().map(String::as_str).collect()
}

/// Order, mark, pause, help, on a table of two rows.
fn keys_of_a_table(terminal: &Terminal, web: &str, caller: &str) {
    terminal.keys(&[">"]);
    terminal.until("order by p50", |lines| {
        lines[22].ends_with(", by client p50")
    });
    terminal.keys(&["r"]);
    terminal.until("reverse order", |lines| {
        lines[22].ends_with(", by client p50, reversed")
    });
    terminal.keys(&["<", "<"]);
    let screen = terminal.until("order by name", |lines| {
        lines[22].ends_with(", by workload")
    });
    assert!(screen[4].contains("top-caller"), "{}", screen[4]);
    terminal.keys(&["r"]);
    terminal.until("names backwards", |lines| lines[4].contains("top-web"));
    terminal.keys(&["j"]);
    let marked = format!("cgroup={web}");
    terminal.until("mark", |lines| lines[22] == marked);
    terminal.keys(&["Down"]);
    let marked = format!("cgroup={caller}");
    terminal.until("next mark", |lines| lines[22] == marked);
    terminal.keys(&["Escape"]);
    terminal.until("no mark", |lines| lines[22].starts_with("2 of "));
    terminal.keys(&["p"]);
    terminal.until("pause", |lines| lines[0].ends_with(" PAUSED"));
    terminal.keys(&["Space"]);
    terminal.until("clock again", |lines| lines[0].ends_with(" UTC"));
    terminal.keys(&["?"]);
    terminal.until_text("any key goes back");
    terminal.keys(&["x"]);
    terminal.until_text("q quit");
}

#[test]
fn top_shows_what_an_agent_knows() {
    terminal_turn!("top_shows_what_an_agent_knows");
    let _controller = IoController::on();
    let agent = Agent::start("--probes tcp,disk,gpu");
    let [web, caller, gpu] = ["top-web", "top-caller", "top-gpu"].map(socket_cgroup);
    let reader = disk_cgroup("top-reader");
    let listener = Server::listen("", &[&web]);
    let to = format!("connect --to 127.0.0.1:{} --count 200", listener.port());
    assert_all(&load::run(&to, &[&caller]), "connected", 200);
    let refused = load::run("connect --to 127.0.0.1:1 --count 7", &[&caller]);
    assert_all(&refused, "refused", 7);
    let device = LoopDevice::new(1 << 20).unwrap();
    let file = device.path().display();
    let read = format!("read --file {file} --direct --count 40 --span 524288");
    load::run(&read, &[&reader]);
    let mut on_gpu = in_cgroup(&gpu, shared_program());
    on_gpu.arg("synchronous").stdout(Stdio::null());
    assert!(on_gpu.status().unwrap().success());

    let terminal = Terminal::new();
    let url = format!("http://{}", agent.address());
    terminal.top(&format!("--url {url} --interval 200ms"));

    // At 80x24.
    let screen = terminal.until("rows", |lines| row(lines, "top-caller-").is_some());
    assert_eq!(screen.len(), 24);
    assert!(screen[0].contains(&url) && screen[0].ends_with(" UTC"));
    assert_eq!(screen[1], " 1 TCP   2 Disk   3 GPU   4 Self");
    assert!(screen[3].starts_with("workload "), "{}", screen[3]);
    assert!(screen[3].ends_with(" p50     p99"), "{}", screen[3]);
    assert_eq!(screen[3].len(), 80);
    terminal.keys(&["/"]);
    terminal.until("line to type in", |lines| lines[23].starts_with('/'));
    terminal.keys(&["t", "o", "p", "-", "x", "BSpace", "Enter"]);
    let screen = terminal.until("search", |lines| lines[1].ends_with("search: top-"));
    for name in ["top-caller-", "top-web-"] {
        assert!(row(&screen, name).is_some(), "{name}: {screen:#?}");
    }
    assert!(screen[22].starts_with("2 of "), "{}", screen[22]);
    assert_eq!(screen[6], "");

    keys_of_a_table(&terminal, &label(&web), &label(&caller));

    // Larger: more columns, to the edge.
    terminal.resize("120", "40");
    let screen = terminal.until("larger screen", |lines| {
        lines.len() == 40 && lines[3].len() == 120 && lines[39].starts_with("q quit")
    });
    assert!(screen[3].ends_with("failed  conns retr/s"), "{}", screen[3]);
    let caller_row = row(&screen, "top-caller-").unwrap();
    assert_eq!(last(&caller_row, 3)[..2], ["7", "200"]);
    let web_row = row(&screen, "top-web-").unwrap();
    assert_eq!(last(&web_row, 3)[..2], ["0", "200"]);
    terminal.resize("40", "10");
    terminal.until("small screen", |lines| {
        lines.len() == 10 && lines[9].starts_with("q quit")
    });
    terminal.resize("80", "24");
    terminal.until("screen as before", |lines| {
        lines.len() == 24 && lines[3].len() == 80
    });

    // The other tabs.
    terminal.keys(&["Tab"]);
    let screen = terminal.until("disk", |lines| row(lines, "top-reader-").is_some());
    let reader_row = row(&screen, "top-reader-").unwrap();
    assert_eq!(last(&reader_row, 2), ["0", "40"], "{screen:#?}");
    terminal.keys(&["3"]);
    let screen = terminal.until("gpu", |lines| row(lines, "-gpu-").is_some());
    assert!(screen[3].contains(" starved "), "{}", screen[3]);
    terminal.keys(&["4"]);
    let screen = terminal.until_text("probe  verdict");
    assert!(screen.iter().any(|line| line.starts_with("CPU ")));
    let attached = |line: &&String| line.contains(" attached ");
    assert!(screen.iter().filter(attached).count() >= 2, "{screen:#?}");
    terminal.keys(&["BTab"]);
    terminal.until("gpu again", |lines| row(lines, "-gpu-").is_some());
    terminal.keys(&["1"]);
    terminal.until("tcp", |lines| row(lines, "top-caller-").is_some());

    // The shell, and back.
    terminal.keys(&["C-z"]);
    wait_for("shell", PATIENCE, || {
        (terminal.state() == "0 1 0").then_some(())
    });
    let _ = fs::remove_file(terminal.0.path().join("code"));
    terminal.ready();
    let _ = fs::remove_file(terminal.0.path().join("code"));
    terminal.shell("fg; echo $? >code");
    terminal.until("screen drawn anew", |lines| {
        row(lines, "top-caller-").is_some() && lines[23].starts_with("q quit")
    });
    assert_eq!(terminal.state(), "1 0 0");
    // Something has written over it.
    terminal.keys(&["C-l"]);
    terminal.until("screen", |lines| lines[23].starts_with("q quit"));
    terminal.keys(&["q"]);
    terminal.ended("0");
    agent.stop();
}

#[test]
fn top_leaves_the_terminal_as_it_was() {
    terminal_turn!("top_leaves_the_terminal_as_it_was");
    let agent = Agent::start("--probes tcp");
    let terminal = Terminal::new();
    let args = format!("--url http://{}", agent.address());
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let pid = terminal.top(&args);
        kill_process(pid, signal).unwrap();
        terminal.ended("0");
    }
    terminal.top(&args);
    terminal.keys(&["C-c"]);
    terminal.ended("0");

    // The agent ends, and what it said stays.
    let pid = terminal.top(&args);
    terminal.until_text("rates over");
    agent.end(Signal::KILL);
    terminal.until_text("no news for ");
    terminal.until_text("Connection refused");
    // The terminal goes.
    terminal.tmux(&["kill-server"]);
    wait_for("end", PATIENCE, || {
        test_kill_process(pid).is_err().then_some(())
    });
}

#[test]
fn top_attaches_where_no_agent_runs() {
    terminal_turn!("top_attaches_where_no_agent_runs");
    // A port that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let [web, caller] = ["top-host", "top-self"].map(socket_cgroup);
    let terminal = Terminal::new();
    terminal.top(&format!(
        "--probes tcp --web.listen-address {address} --interval 200ms"
    ));
    terminal.until_text("probes of its own");
    let listener = Server::listen("", &[&web]);
    let to = format!("connect --to 127.0.0.1:{} --count 50", listener.port());
    assert_all(&load::run(&to, &[&caller]), "connected", 50);
    terminal.resize("120", "24");
    terminal.until("all connects", |lines| {
        let words = row(lines, "top-self-").unwrap_or_default();
        last(&words, 3).get(1) == Some(&"50")
    });
    terminal.keys(&["2"]);
    terminal.until_text("the disk probe is off");
    terminal.keys(&["q"]);
    terminal.ended("0");

    // An agent is there: it is read.
    let mut command = sentry("--probes tcp");
    command.args(["--web.listen-address", &address.to_string()]);
    let agent = Agent::spawn_as(command);
    terminal.top(&format!("--web.listen-address {address}"));
    terminal.until_text(&format!("http://{address}"));
    terminal.keys(&["q"]);
    terminal.ended("0");
    agent.stop();
}

#[test]
fn top_without_a_terminal_says_so() {
    let Some(_turn) = take_turn("top_without_a_terminal_says_so") else {
        return;
    };
    let said = output(sentry("top"));
    assert_eq!(said.status.code(), Some(1));
    let stderr = String::from_utf8(said.stderr).unwrap();
    assert_eq!(
        stderr,
        "sentry: top needs a terminal; an agent says the same as JSON: /api/v1/workloads\n"
    );
    assert!(said.stdout.is_empty());
    for wrong in ["--url node-7", "--interval 1ms"] {
        let said = output(sentry(&format!("top {wrong}")));
        assert_eq!(said.status.code(), Some(2), "{wrong}");
        let stderr = String::from_utf8(said.stderr).unwrap();
        assert!(stderr.contains("allowed: "), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}
