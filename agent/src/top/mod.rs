//! `sentry top`: what workloads do, on a terminal.

mod answer;
mod app;
mod draw;
mod source;
mod table;

use std::{
    io::{self, Stdout},
    panic, process, thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        event::{self, Event},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
    layout::{Position, Rect},
};
use rustix::process::{Signal as Number, getpid, kill_process};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

pub(crate) use self::source::{Source, Url};
use self::{
    answer::Answer,
    app::{App, Effect},
};

/// The exit code of a program that has panicked, by Rust's own custom.
const PANICKED: i32 = 101;

/// How long the kernel gets to stop all threads.
const STOP: Duration = Duration::from_millis(50);

/// What the command line says of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// The agent to read.
    pub(crate) url: Option<Url>,
    /// How often.
    pub(crate) interval: Duration,
}

/// The terminal as it is needed. As it was before, once this is dropped.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    fn new() -> io::Result<Self> {
        let screen = Self {
            terminal: Terminal::new(CrosstermBackend::new(io::stdout()))?,
        };
        enter()?;
        Ok(screen)
    }

    fn draw(&mut self, app: &mut App) -> io::Result<()> {
        let drawn = self.terminal.draw(|frame| {
            draw::draw(app, Instant::now(), frame.area(), frame.buffer_mut());
        });
        drawn.map(drop)
    }

    /// Forgets what is on the screen.
    fn clear(&mut self) -> io::Result<()> {
        // `Terminal::clear` asks the terminal where its cursor is, and the answer would be taken for keys.
        let size = self.terminal.size()?;
        self.terminal
            .resize(Rect::from((Position::default(), size)))
    }

    /// Stops this process as a shell expects it, until it is continued.
    fn suspend(&mut self) -> io::Result<()> {
        leave();
        kill_process(getpid(), Number::TSTP)?;
        thread::sleep(STOP);
        enter()?;
        self.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen).inspect_err(|_| leave())
}

/// Makes the terminal what it was. It may be gone, and then nothing is to be done.
fn leave() {
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// A panic, in whichever thread, is a mistake in this program: it ends it, and can be read.
fn leave_upon_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        leave();
        report(info);
        process::exit(PANICKED);
    }));
}

/// Shows what `source` says until a key or a signal ends it.
///
/// # Errors
/// When the terminal cannot be read or written.
pub(crate) async fn run(
    source: Source,
    interval: Duration,
    mut hangup: Signal,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut app = App::new(source.to_string());
    let mut answers = ask(source, interval);
    leave_upon_panic();
    let mut screen = Screen::new().context("the terminal")?;
    let mut events = events()?;
    loop {
        screen.draw(&mut app).context("the terminal")?;
        let event = tokio::select! {
            answer = answers.recv() => {
                let answer = answer.context("nobody asks any more")?;
                app.take(answer, Instant::now());
                continue;
            }
            event = events.recv() => Some(event.context("the terminal is gone")?),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        };
        // Held keys are many events: they are one drawing.
        let mut next = event;
        while let Some(event) = next {
            let event = event.context("the terminal")?;
            let effect = event.as_key_event().map(|key| app.key(key));
            match effect.unwrap_or(Effect::None) {
                Effect::None => {}
                Effect::Quit => return Ok(()),
                Effect::Suspend => screen.suspend().context("the terminal")?,
                Effect::Redraw => screen.clear().context("the terminal")?,
            }
            next = match events.try_recv() {
                Ok(event) => Some(event),
                Err(mpsc::error::TryRecvError::Empty) => None,
                Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
            };
        }
    }
}

/// Asks as often as it is to be shown, but never while an answer is on its way or waits to be shown.
fn ask(source: Source, interval: Duration) -> mpsc::Receiver<Result<Answer, String>> {
    let (answers, shown) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let answer = source.read().await.map_err(|error| error.to_string());
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    });
    shown
}

/// Keys and changes of the size, read by a thread of their own.
fn events() -> anyhow::Result<mpsc::Receiver<io::Result<Event>>> {
    let (events, taken) = mpsc::channel(64);
    let read = move || {
        loop {
            let event = event::read();
            let failed = event.is_err();
            if events.blocking_send(event).is_err() || failed {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("keys".to_owned())
        .spawn(read)
        .context("cannot start a thread")?;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;

    /// Set in the process that is to panic.
    const PANICS: &str = "SENTRY_TEST_PANICS";

    #[test]
    fn a_panic_of_any_thread_leaves_the_screen() {
        if env::var_os(PANICS).is_some() {
            leave_upon_panic();
            let _ = thread::spawn(|| panic!("as it should")).join();
            process::exit(0);
        }
        let mut command = Command::new(env::current_exe().unwrap());
        let name = "top::tests::a_panic_of_any_thread_leaves_the_screen";
        command.args(["--exact", name, "--nocapture"]);
        let output = command.env(PANICS, "1").output().unwrap();
        assert_eq!(output.status.code(), Some(PANICKED), "{output:?}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("\x1b[?1049l\x1b[?25h"), "{stdout:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("as it should"), "{stderr:?}");
    }
}
