//! What stands where on the screen.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};

use super::{
    answer::{Answer, Probe},
    app::{App, Mode},
    table::{self, Tab},
};
use crate::config::one_line;

/// Lines above the rows: what is shown, the tabs, and two of titles.
const HEAD_LINES: u16 = 4;
/// Lines below them: what is marked, and what keys there are.
const FOOT_LINES: u16 = 2;

const PLAIN: Style = Style::new();
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const SORTED: Style = BOLD.add_modifier(Modifier::UNDERLINED);
const MARKED: Style = Style::new().add_modifier(Modifier::REVERSED);
const GOOD: Style = Style::new().fg(Color::Green);
const WARNING: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

const KEYS: &str = "q quit  ? help  Tab next  < > sort by  r reverse  / search  p pause";

const HELP: [(&str, &str); 14] = [
    ("Tab, 1 2 3 4", "the next tab, or TCP, Disk, GPU, Self"),
    ("< >, left, right", "sort by another column"),
    ("r", "turn the order round"),
    (
        "up down, j k",
        "mark a row: the line below has all its labels",
    ),
    ("PgUp PgDn Home End", "further"),
    (
        "/",
        "search: rows with all the words; Enter keeps, Esc ends",
    ),
    ("Esc", "take the mark away, then the search"),
    ("p, space", "hold the numbers, and go on"),
    ("Ctrl-L", "draw all anew"),
    ("Ctrl-Z", "to the shell; fg comes back"),
    ("q, Ctrl-C", "quit"),
    ("", ""),
    (
        "p50, p99",
        "half of the recent ones took at most this, and 99 %",
    ),
    (
        "starved, idle",
        "of the time in which processes could have used a GPU",
    ),
];

/// Draws all of it. Keeps `first` and `page` of `app` in accord with the screen.
pub(super) fn draw(app: &mut App, now: Instant, area: Rect, buffer: &mut Buffer) {
    let mut screen = Screen { buffer, area };
    screen.head(app);
    screen.tabs(app);
    let rows = area.height.saturating_sub(HEAD_LINES + FOOT_LINES);
    app.page = usize::from(rows).max(1);
    if app.mode == Mode::Help {
        screen.help();
    } else if app.tab == Tab::Own {
        screen.own(app);
    } else {
        screen.table(app, rows);
    }
    screen.foot(app, now);
}

struct Screen<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
}

impl Screen<'_> {
    /// Text from a place on, cut at the right edge; where it ends.
    fn put(&mut self, x: u16, y: u16, text: &str, style: Style) -> u16 {
        if x >= self.area.width || y >= self.area.height {
            return x;
        }
        let (x, y) = (self.area.x + x, self.area.y + y);
        let (end, _) = self.buffer.set_stringn(x, y, text, usize::MAX, style);
        end - self.area.x
    }

    /// Text that ends at the right edge, if it has room after `from`.
    fn put_right(&mut self, from: u16, y: u16, text: &str, style: Style) {
        let width = width(text);
        if from + width <= self.area.width {
            self.put(self.area.width - width, y, text, style);
        }
    }

    fn head(&mut self, app: &App) {
        let mut x = self.put(0, 0, "sentry top", BOLD);
        if let Some(answer) = &app.answer {
            x = self.put(x + 2, 0, &one_line(&answer.status.node), PLAIN);
        }
        x = self.put(x + 2, 0, &app.source, DIM);
        if app.paused {
            self.put_right(x + 1, 0, " PAUSED ", MARKED);
        } else if let Some(answer) = &app.answer {
            let now = clock(answer.status.now_ms);
            self.put_right(x + 1, 0, &now, PLAIN);
        }
    }

    fn tabs(&mut self, app: &App) {
        let mut x = 0;
        for (number, tab) in Tab::ALL.into_iter().enumerate() {
            let title = format!(" {} {} ", number + 1, tab.title());
            let style = if tab == app.tab { MARKED } else { PLAIN };
            x = self.put(x, 1, &title, style) + 1;
        }
        if !app.search.is_empty() && app.mode != Mode::Search {
            self.put(x + 1, 1, &format!("search: {}", app.search), WARNING);
        }
    }

    fn table(&mut self, app: &mut App, height: u16) {
        let order = app.order();
        let (shown, name_width) = table::fitting(app.tab, order, self.area.width);
        self.titles(app, &shown, name_width);
        let rows = app.rows();
        let count = rows.len();
        let marked = rows
            .iter()
            .position(|row| Some(&row.id) == app.selected.as_ref());
        let mut first = app
            .first
            .min(count.saturating_sub(usize::from(height).max(1)));
        if let Some(marked) = marked {
            first = first.min(marked);
            first = first.max((marked + 1).saturating_sub(height.into()));
        }
        for (line, row) in rows.iter().enumerate().skip(first).take(height.into()) {
            let Ok(y) = u16::try_from(line - first) else {
                break;
            };
            let y = HEAD_LINES + y;
            let style = match (marked == Some(line), row.lives) {
                (true, _) => MARKED,
                (false, true) => PLAIN,
                (false, false) => DIM,
            };
            if marked == Some(line) {
                let line = " ".repeat(self.area.width.into());
                self.put(0, y, &line, MARKED);
            }
            let name = shortened(&table::name(row), name_width.into());
            let mut x = name_width;
            self.put(0, y, &name, style);
            for at in &shown {
                let column = &app.tab.columns()[*at];
                x = self.right(x, y, column.width, &column.text(row), style);
            }
        }
        if count == 0 {
            let text = nothing(app);
            self.put(2, HEAD_LINES + 1, &text, PLAIN);
        }
        app.first = first;
    }

    /// A column's text, which ends where the column does: there.
    fn right(&mut self, x: u16, y: u16, column: u16, text: &str, style: Style) -> u16 {
        let end = x + 1 + column;
        self.put(end.saturating_sub(width(text)), y, text, style);
        end
    }

    fn titles(&mut self, app: &App, shown: &[usize], name_width: u16) {
        let order = app.order();
        let style = |by| if order.by == by { SORTED } else { DIM };
        self.put(0, 3, "workload", style(0));
        let (mut x, mut above) = (name_width, "");
        for at in shown {
            let column = &app.tab.columns()[*at];
            if column.group != above {
                above = column.group;
                // Over the first of its columns, to whose right it may go on.
                let text = width(above);
                let start = if text > column.width {
                    x + 1
                } else {
                    x + 1 + column.width - text
                };
                self.put(start, 2, above, DIM);
            }
            x = self.right(x, 3, column.width, column.title, style(at + 1));
        }
    }

    fn own(&mut self, app: &mut App) {
        let Some(answer) = &app.answer else {
            let text = nothing(app);
            self.put(2, HEAD_LINES + 1, &text, PLAIN);
            return;
        };
        let lines = own_lines(answer, app.cpu_share(), self.area.width.into());
        let height = usize::from(self.area.height.saturating_sub(2 + FOOT_LINES));
        app.first = app.first.min(lines.len().saturating_sub(height.max(1)));
        for ((text, style), y) in lines.into_iter().skip(app.first).take(height).zip(2..) {
            self.put(0, y, &text, style);
        }
    }

    fn help(&mut self) {
        for ((keys, what), y) in HELP.iter().zip(3..) {
            if y + FOOT_LINES >= self.area.height {
                break;
            }
            self.put(1, y, keys, BOLD);
            self.put(21, y, what, PLAIN);
        }
    }

    fn foot(&mut self, app: &App, now: Instant) {
        let Some(above) = self.area.height.checked_sub(FOOT_LINES) else {
            return;
        };
        if let Some(silence) = &app.silence {
            let since = now.saturating_duration_since(silence.since).as_secs();
            let text = format!("no news for {since} s: {}", silence.why);
            self.put(0, above, &text, BAD);
        } else if app.tab != Tab::Own && app.mode != Mode::Help {
            self.about_rows(app, above);
        }
        if app.mode == Mode::Search {
            let x = self.put(0, above + 1, "/", BOLD);
            let x = self.put(x, above + 1, &app.search, PLAIN);
            self.put(x, above + 1, " ", MARKED);
            self.put_right(x + 2, above + 1, "Enter keeps, Esc ends", DIM);
        } else {
            let keys = if app.mode == Mode::Help {
                "any key goes back"
            } else {
                KEYS
            };
            self.put(0, above + 1, keys, DIM);
        }
    }

    /// The labels of the row that is marked, or how many rows there are.
    fn about_rows(&mut self, app: &App, y: u16) {
        let Some(answer) = &app.answer else {
            return;
        };
        let rows = app.rows();
        let marked = rows
            .iter()
            .find(|row| Some(&row.id) == app.selected.as_ref());
        if let Some(row) = marked {
            let gone = if row.lives { "" } else { "gone: " };
            self.put(0, y, &format!("{gone}{}", table::whole(row)), PLAIN);
            return;
        }
        let of_all = answer.workloads.rows.iter();
        let of_all = of_all.filter(|row| app.tab.has(row)).count();
        let what = if of_all == 1 { "workload" } else { "workloads" };
        let mut text = match rows.len() {
            count if count == of_all => format!("{count} {what}"),
            count => format!("{count} of {of_all} {what}"),
        };
        let window = Duration::from_millis(answer.workloads.window_ms).as_secs_f64();
        let order = app.order();
        let by = table::title(app.tab, order);
        let turned = if order.reversed { ", reversed" } else { "" };
        // Writing to a String can't fail.
        let _ = write!(text, ", rates over {window:.0} s, by {by}{turned}");
        if answer.workloads.left_out > 0 {
            let left_out = answer.workloads.left_out;
            let _ = write!(text, "; {left_out} less busy ones are left out");
        }
        self.put(0, y, &text, PLAIN);
    }
}

/// Why a table has no rows.
fn nothing(app: &App) -> String {
    let Some(answer) = &app.answer else {
        return match app.silence {
            Some(_) => String::new(),
            None => "waiting for the first numbers".to_owned(),
        };
    };
    if !app.search.is_empty() {
        return "no workload has these words in its labels; Esc ends the search".to_owned();
    }
    let name = match app.tab {
        Tab::Disk => "disk",
        Tab::Gpu => "gpu",
        _ => "tcp",
    };
    let mut probes = answer.status.probes.iter();
    match probes.find(|probe| probe.name == name) {
        Some(Probe {
            verdict, reason, ..
        }) if !["attached", "degraded"].contains(&verdict.as_str()) => {
            let why = one_line(&format!("the {name} probe is {verdict}: {reason}"));
            format!("{why}; 4 has more")
        }
        Some(_) => "nothing has happened here so far".to_owned(),
        None => format!("the {name} probe is off"),
    }
}

/// What Sentry is and takes, and what became of its probes.
fn own_lines(answer: &Answer, cpu: Option<f64>, width: usize) -> Vec<(String, Style)> {
    let (status, agent) = (&answer.status, &answer.status.agent);
    let or_dash =
        |value: Option<f64>, show: fn(f64) -> String| value.map_or_else(|| "-".to_owned(), show);
    let up = Duration::from_millis(status.now_ms.saturating_sub(status.started_ms));
    let history = Duration::from_millis(status.history.step_ms * status.history.steps);
    let version = one_line(&status.agent_version);
    let kernel = one_line(&status.kernel);
    let mut lines = vec![
        (String::new(), PLAIN),
        (
            format!("Sentry {version} on Linux {kernel}, for {}", length(up)),
            PLAIN,
        ),
        (
            format!(
                "CPU {} of one   memory {}   open files {}   history {} in {}",
                or_dash(cpu, table::percent),
                or_dash(agent.resident_bytes, table::bytes),
                or_dash(agent.open_files, table::number),
                length(history),
                table::bytes(status.history.bytes),
            ),
            PLAIN,
        ),
    ];
    let lost = agent.events_lost.unwrap_or_default();
    if lost > 0.0 {
        lines.push((format!("events lost: {}", table::number(lost)), BAD));
    }
    lines.push((String::new(), PLAIN));
    let cells = ["probe", "verdict", "hook", "series", "overflow", "lost"];
    lines.push((probe_line(&cells.map(str::to_owned)), DIM));
    for probe in &status.probes {
        let series = match (probe.series, probe.series_limit) {
            (Some(series), Some(limit)) => {
                format!("{}/{}", table::number(series), table::number(limit))
            }
            _ => "-".to_owned(),
        };
        let cells = [
            one_line(&probe.name),
            one_line(&probe.verdict),
            one_line(&probe.hook),
            series,
            or_dash(probe.overflow, table::number),
            or_dash(probe.events_lost, table::number),
        ];
        let style = match probe.verdict.as_str() {
            "attached" => GOOD,
            "degraded" => WARNING,
            "failed" => BAD,
            _ => PLAIN,
        };
        lines.push((probe_line(&cells), style));
        let why = [&probe.reason, &probe.detail].map(|text| one_line(text));
        let says = |text: &String| !text.is_empty() && text != "ok";
        let why: Vec<String> = why.into_iter().filter(says).collect();
        for line in wrapped(&why.join(": "), width.saturating_sub(4)) {
            lines.push((format!("    {line}"), DIM));
        }
    }
    lines
}

fn probe_line([probe, verdict, hook, series, overflow, lost]: &[String; 6]) -> String {
    format!("{probe:<6} {verdict:<12} {hook:<12} {series:>13} {overflow:>9} {lost:>7}")
}

/// Lines of at most so many characters, broken between words where there are some.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(10);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The text, or its beginning and its end: those of a path say most.
fn shortened(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let head = kept / 3;
    let start = text.chars().take(head);
    let end = text.chars().skip(count - (kept - head));
    start.chain(['~']).chain(end).collect()
}

/// Of ASCII, as all is that is placed at the right.
fn width(text: &str) -> u16 {
    u16::try_from(text.len()).unwrap_or(u16::MAX)
}

/// The time of day, UTC.
fn clock(ms: u64) -> String {
    let seconds = ms / 1000;
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02} UTC", seconds % 60)
}

/// A length of time in its largest unit.
fn length(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::top::{
        answer::{Agent, Disk, Durations, Gpu, History, Row},
        app::tests::{answer, app, press},
        table::tests::row,
    };

    /// The lines of a screen of this size, without the blanks at their ends.
    fn drawn(app: &mut App, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let now = Instant::now();
        terminal
            .draw(|frame| draw(app, now, frame.area(), frame.buffer_mut()))
            .unwrap();
        let cells = terminal.backend().buffer().content();
        let lines = cells.chunks(width.into());
        lines
            .map(|line| {
                let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
                line.trim_end().to_owned()
            })
            .collect()
    }

    fn two() -> Vec<Row> {
        vec![
            row("/system.slice/web.service", 120.0, Some(0.0123)),
            row("/a", 0.5, None),
        ]
    }

    #[test]
    fn a_screen_of_80_by_24() {
        let lines = drawn(&mut app(&two()), 80, 24);
        let expected = [
            "sentry top  node-7  http://127.0.0.1:9763                           00:16:40 UTC",
            " 1 TCP   2 Disk   3 GPU   4 Self",
            "                            client                 failed server",
            "workload                        /s     p50     p99     /s     /s     p50     p99",
            "/system.slice/web.service      120 6.15 ms 12.3 ms   0.25      0       -       -",
            "/a                            0.50       -       -   0.25      0       -       -",
        ];
        assert_eq!(lines[..6], expected);
        assert_eq!(lines[22], "2 workloads, rates over 14 s, by client /s");
        assert_eq!(lines[23], KEYS);
        assert!(KEYS.len() <= 80);
        assert!(lines[6..22].iter().all(String::is_empty));
    }

    #[test]
    fn more_room_shows_more_columns_and_less_shortens_names() {
        let mut app = app(&two());
        let lines = drawn(&mut app, 120, 30);
        assert!(lines[3].ends_with("failed  conns retr/s"), "{}", lines[3]);
        let lines = drawn(&mut app, 30, 24);
        assert_eq!(lines[4], "/system~ice/web.service    120");
        // However small it is.
        for (width, height) in [(1, 1), (10, 3), (3, 24), (80, 1), (80, 5), (300, 2)] {
            drawn(&mut app, width, height);
            press(&mut app, "4");
            drawn(&mut app, width, height);
            press(&mut app, "?");
            drawn(&mut app, width, height);
            press(&mut app, "?1");
        }
    }

    #[test]
    fn disks_and_gpus() {
        let mut disk = row("/db", 0.0, None);
        disk.tcp = None;
        disk.disk = Some(Disk {
            io: Durations {
                total: 5000.0,
                per_second: 250.0,
                p50_seconds: Some(0.000_7),
                p99_seconds: Some(0.02),
            },
            ..Disk::default()
        });
        let mut gpu = row("/job", 0.0, None);
        gpu.tcp = None;
        gpu.labels.insert("process".to_owned(), "train".to_owned());
        gpu.gpu = Some(Gpu {
            starved_share: Some(0.25),
            allocated_bytes: 4e9,
            processes: 1.0,
            ..Gpu::default()
        });
        let mut app = app(&[disk, gpu]);
        press(&mut app, "2");
        assert_eq!(
            drawn(&mut app, 80, 24)[2..5],
            [
                "                               I/O                   bytes         errors    I/O",
                "workload                        /s     p50     p99      /s     all    all    all",
                "/db                            250  700 us 20.0 ms     0 B     0 B      0   5000",
            ]
        );
        press(&mut app, "3");
        let lines = drawn(&mut app, 80, 24);
        assert!(lines[4].starts_with("train in /job "), "{}", lines[4]);
        assert!(
            lines[4].contains(" 25.0 %       -      0      0 4.00 GB      1      0"),
            "{}",
            lines[4]
        );
        press(&mut app, "1");
        assert_eq!(drawn(&mut app, 80, 24)[5], "  the tcp probe is off");
    }

    #[test]
    fn sentry_itself() {
        let mut answer = answer(&[]);
        answer.status.agent = Agent {
            cpu_seconds: Some(1.0),
            resident_bytes: Some(12_300_000.0),
            open_files: Some(31.0),
            events_lost: Some(2.0),
        };
        answer.status.history = History {
            step_ms: 10_000,
            steps: 6,
            bytes: 12_000.0,
        };
        answer.status.probes = vec![Probe {
            name: "gpu".to_owned(),
            verdict: "unsupported".to_owned(),
            reason: "no_cuda".to_owned(),
            detail: "no process uses CUDA, and none of the libraries is where they are looked for"
                .to_owned(),
            ..Probe::default()
        }];
        let mut app = App::new("probes of its own".to_owned());
        app.take(Ok(answer), Instant::now());
        press(&mut app, "4");
        let lines = drawn(&mut app, 80, 24);
        assert_eq!(
            lines[3..11],
            [
                "Sentry 0.1.0 on Linux 6.18.1, for 60 s",
                "CPU - of one   memory 12.3 MB   open files 31   history 60 s in 12.0 kB",
                "events lost: 2",
                "",
                "probe  verdict      hook                series  overflow    lost",
                "gpu    unsupported                           -         -       -",
                "    no_cuda: no process uses CUDA, and none of the libraries is where they are",
                "    looked for",
            ]
        );
        press(&mut app, "3");
        let lines = drawn(&mut app, 80, 24);
        assert_eq!(
            lines[5],
            "  the gpu probe is unsupported: no_cuda; 4 has more"
        );
    }

    #[test]
    fn searching_pausing_helping_and_silence_are_seen() {
        let mut app = app(&two());
        press(&mut app, "/web");
        let lines = drawn(&mut app, 80, 24);
        assert!(lines[23].starts_with("/web"), "{}", lines[23]);
        assert_eq!(lines[22], "1 of 2 workloads, rates over 14 s, by client /s");
        press(&mut app, "x\n");
        let lines = drawn(&mut app, 80, 24);
        assert!(lines[1].ends_with("search: webx"), "{}", lines[1]);
        assert!(lines[5].contains("no workload has these words"));
        press(&mut app, "\x1bjp");
        let lines = drawn(&mut app, 80, 24);
        assert!(lines[0].ends_with(" PAUSED"), "{}", lines[0]);
        assert_eq!(lines[22], "cgroup=/system.slice/web.service");
        press(&mut app, "?");
        let lines = drawn(&mut app, 80, 24);
        for (line, (keys, _)) in lines[3..].iter().zip(HELP) {
            assert!(line.trim_start().starts_with(keys), "{line}");
            assert!(line.len() < 80);
        }
        assert_eq!(lines[23], "any key goes back");
        app.take(Err("no answer: refused".to_owned()), Instant::now());
        let lines = drawn(&mut app, 80, 24);
        assert_eq!(lines[22], "no news for 0 s: no answer: refused");
    }

    #[test]
    fn rows_are_scrolled_to_what_is_marked() {
        let rows: Vec<Row> = (0..100)
            .map(|number| row(&format!("/{number}"), f64::from(100 - number), None))
            .collect();
        let mut app = app(&rows);
        let shown = |app: &mut App| -> Vec<String> {
            let lines = drawn(app, 80, 24);
            let names = lines[4..22]
                .iter()
                .map(|line| line.split(' ').next().unwrap());
            names.map(str::to_owned).collect()
        };
        assert_eq!(shown(&mut app)[..2], ["/0", "/1"]);
        press(&mut app, "G");
        assert_eq!(shown(&mut app)[17], "/99");
        press(&mut app, "k");
        // It moves within the screen.
        assert_eq!(shown(&mut app)[17], "/99");
        assert_eq!(app.selected.as_deref(), Some("/98"));
        press(&mut app, "g");
        assert_eq!(shown(&mut app)[0], "/0");
    }

    #[test]
    fn what_somebody_chose_is_only_text() {
        let hostile = row("/\x1b]0;x\x07\u{202e}\u{4e16}\u{754c}", 1.0, None);
        let mut app = app(&[hostile]);
        let lines = drawn(&mut app, 80, 24);
        assert!(lines[4].starts_with("/\\u{1b}]0;x"), "{}", lines[4]);
        assert!(!lines.concat().contains('\x1b'));
    }
}
