//! What is shown and how: changed by keys and by what the agent says, and by nothing else.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    answer::{Answer, Row},
    table::{self, Order, Tab},
};

/// What Sentry takes of a CPU is over about as long as other rates.
const CPU_WINDOW_MS: u64 = 10_000;

/// Characters of what is searched for.
const SEARCH_MAX: usize = 200;

/// What keys mean at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Browse,
    Search,
    Help,
}

/// What a key asks of the terminal's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Quit,
    /// Stop as other programs do upon Ctrl-Z.
    Suspend,
    /// Draw all anew: something else has written on the screen.
    Redraw,
}

/// Since when there is no answer, and why.
#[derive(Debug, Clone)]
pub(super) struct Silence {
    pub(super) since: Instant,
    pub(super) why: String,
}

/// All that a screen shows.
#[derive(Debug)]
pub(super) struct App {
    /// Where the numbers come from.
    pub(super) source: String,
    pub(super) tab: Tab,
    pub(super) mode: Mode,
    pub(super) paused: bool,
    pub(super) search: String,
    /// Of each tab.
    orders: [Order; Tab::ALL.len()],
    /// The id of the row that is marked.
    pub(super) selected: Option<String>,
    /// The first row, or line, that is shown; drawing keeps it within bounds.
    pub(super) first: usize,
    /// Rows that the last screen had room for.
    pub(super) page: usize,
    pub(super) answer: Option<Answer>,
    pub(super) silence: Option<Silence>,
    /// When, in milliseconds since 1970, and the CPU time by then in seconds.
    cpu: VecDeque<(u64, f64)>,
}

impl App {
    pub(super) fn new(source: String) -> Self {
        let busiest = Order {
            by: 1,
            reversed: false,
        };
        Self {
            source,
            tab: Tab::Tcp,
            mode: Mode::Browse,
            paused: false,
            search: String::new(),
            orders: [busiest; Tab::ALL.len()],
            selected: None,
            first: 0,
            page: 1,
            answer: None,
            silence: None,
            cpu: VecDeque::new(),
        }
    }

    pub(super) fn order(&self) -> Order {
        self.orders[self.tab as usize]
    }

    /// The rows of this tab, in order.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let all = self.answer.as_ref().map(|answer| &answer.workloads);
        let all = all.map_or(&[][..], |workloads| &workloads.rows);
        table::rows(all, self.tab, &self.search, self.order())
    }

    /// What Sentry takes of one CPU.
    pub(super) fn cpu_share(&self) -> Option<f64> {
        let ((from_ms, from), (to_ms, to)) = (self.cpu.front()?, self.cpu.back()?);
        let passed = Duration::from_millis(to_ms.checked_sub(*from_ms)?).as_secs_f64();
        (passed > 0.0).then(|| (to - from).max(0.0) / passed)
    }

    /// Takes in what was said, or why nothing was.
    pub(super) fn take(&mut self, answer: Result<Answer, String>, now: Instant) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                let since = self.silence.as_ref().map_or(now, |silence| silence.since);
                self.silence = Some(Silence { since, why });
                return;
            }
        };
        self.silence = None;
        if let Some(cpu) = answer.status.agent.cpu_seconds {
            let at = answer.status.now_ms;
            // Another agent, or another time.
            if self
                .cpu
                .back()
                .is_some_and(|(last, taken)| *last > at || *taken > cpu)
            {
                self.cpu.clear();
            }
            self.cpu.push_back((at, cpu));
            while self
                .cpu
                .get(1)
                .is_some_and(|(second, _)| at - second >= CPU_WINDOW_MS)
            {
                self.cpu.pop_front();
            }
        }
        if !self.paused {
            self.answer = Some(answer);
        }
    }

    /// Takes in a key.
    pub(super) fn key(&mut self, key: KeyEvent) -> Effect {
        if key.kind == KeyEventKind::Release {
            return Effect::None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Effect::Quit,
                KeyCode::Char('z') => return Effect::Suspend,
                KeyCode::Char('l') => return Effect::Redraw,
                KeyCode::Char('u') if self.mode == Mode::Search => self.search.clear(),
                _ => {}
            }
            return Effect::None;
        }
        match self.mode {
            Mode::Browse => self.browse(key.code),
            Mode::Search => {
                self.type_in(key.code);
                Effect::None
            }
            Mode::Help => {
                self.mode = Mode::Browse;
                match key.code {
                    KeyCode::Char('q') => Effect::Quit,
                    _ => Effect::None,
                }
            }
        }
    }

    fn browse(&mut self, code: KeyCode) -> Effect {
        match code {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('/') => self.mode = Mode::Search,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char(digit @ '1'..='4') => {
                self.go_to(Tab::ALL[digit as usize - '1' as usize]);
            }
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(Tab::ALL.len() - 1),
            KeyCode::Char('<' | ',') | KeyCode::Left => self.sort_by_next(false),
            KeyCode::Char('>' | '.') | KeyCode::Right => self.sort_by_next(true),
            KeyCode::Char('r') => {
                let order = &mut self.orders[self.tab as usize];
                order.reversed = !order.reversed;
            }
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1),
            KeyCode::PageUp => self.move_by(-self.page.cast_signed()),
            KeyCode::PageDown => self.move_by(self.page.cast_signed()),
            KeyCode::Home | KeyCode::Char('g') => self.move_by(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.move_by(isize::MAX),
            KeyCode::Esc if self.selected.is_some() => self.selected = None,
            KeyCode::Esc => self.search.clear(),
            _ => {}
        }
        Effect::None
    }

    fn type_in(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::Browse,
            KeyCode::Esc => {
                self.search.clear();
                self.mode = Mode::Browse;
            }
            KeyCode::Backspace => drop(self.search.pop()),
            KeyCode::Char(c) if !c.is_control() && self.search.len() < SEARCH_MAX => {
                self.search.push(c);
                self.first = 0;
            }
            _ => {}
        }
    }

    fn turn(&mut self, by: usize) {
        self.go_to(Tab::ALL[(self.tab as usize + by) % Tab::ALL.len()]);
    }

    fn go_to(&mut self, tab: Tab) {
        self.tab = tab;
        self.first = 0;
    }

    /// Sorts by the next column to the right or left; beyond the last is the first.
    fn sort_by_next(&mut self, right: bool) {
        let count = self.tab.columns().len() + 1;
        let order = &mut self.orders[self.tab as usize];
        let step = if right { 1 } else { count - 1 };
        *order = Order {
            by: (order.by + step) % count,
            reversed: false,
        };
        self.first = 0;
    }

    /// Marks the row that is so many further, and the first at first. What has no rows is scrolled.
    fn move_by(&mut self, by: isize) {
        if self.tab.columns().is_empty() {
            self.first = self.first.saturating_add_signed(by);
            return;
        }
        let rows = self.rows();
        let Some(last) = rows.len().checked_sub(1) else {
            return;
        };
        let marked = rows
            .iter()
            .position(|row| Some(&row.id) == self.selected.as_ref());
        let next = match marked {
            Some(at) => at.saturating_add_signed(by).min(last),
            None if by == isize::MAX => last,
            None => self.first.min(last),
        };
        self.selected = Some(rows[next].id.clone());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::top::{
        answer::{Agent, Status, Workloads},
        table::{name, tests::row},
    };

    pub(in crate::top) fn app(rows: &[Row]) -> App {
        let mut app = App::new("http://127.0.0.1:9763".to_owned());
        app.take(Ok(answer(rows)), Instant::now());
        app
    }

    pub(in crate::top) fn answer(rows: &[Row]) -> Answer {
        Answer {
            status: Status {
                agent_version: "0.1.0".to_owned(),
                node: "node-7".to_owned(),
                kernel: "6.18.1".to_owned(),
                now_ms: 1_000_000,
                started_ms: 940_000,
                ..Status::default()
            },
            workloads: Workloads {
                window_ms: 14_000,
                rows: rows.to_vec(),
                left_out: 0,
            },
        }
    }

    pub(in crate::top) fn press(app: &mut App, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '\x1b' => KeyCode::Esc,
                '\x08' => KeyCode::Backspace,
                key => KeyCode::Char(key),
            };
            assert_eq!(app.key(code.into()), Effect::None, "{key:?}");
        }
    }

    fn names(app: &App) -> Vec<String> {
        app.rows().into_iter().map(name).collect()
    }

    #[test]
    fn tabs_go_round() {
        let mut app = app(&[]);
        for expected in [Tab::Disk, Tab::Gpu, Tab::Own, Tab::Tcp] {
            press(&mut app, "\t");
            assert_eq!(app.tab, expected);
        }
        app.key(KeyCode::BackTab.into());
        assert_eq!(app.tab, Tab::Own);
        for (key, expected) in ["1", "2", "3", "4"].into_iter().zip(Tab::ALL) {
            press(&mut app, key);
            assert_eq!(app.tab, expected);
        }
    }

    #[test]
    fn each_tab_has_its_order() {
        let mut app = app(&[row("/a", 1.0, Some(0.5)), row("/b", 2.0, Some(0.1))]);
        assert_eq!(names(&app), ["/b", "/a"]);
        press(&mut app, "r");
        assert_eq!(names(&app), ["/a", "/b"]);
        press(&mut app, ">>");
        assert_eq!((app.order().by, app.order().reversed), (3, false));
        assert_eq!(names(&app), ["/a", "/b"]);
        press(&mut app, "<<<");
        assert_eq!(app.order().by, 0);
        press(&mut app, "<");
        assert_eq!(app.order().by, 10);
        press(&mut app, "\t");
        assert_eq!(app.order().by, 1);
    }

    #[test]
    fn a_search_is_typed_kept_and_taken_back() {
        let mut app = app(&[row("/ab", 1.0, None), row("/b", 2.0, None)]);
        press(&mut app, "/abq\x08");
        assert_eq!((app.mode, app.search.as_str()), (Mode::Search, "ab"));
        assert_eq!(names(&app), ["/ab"]);
        press(&mut app, "\n");
        assert_eq!((app.mode, app.search.as_str()), (Mode::Browse, "ab"));
        press(&mut app, "\x1b");
        assert_eq!(app.search, "");
        press(&mut app, "/x\x1b");
        assert_eq!((app.mode, app.search.as_str()), (Mode::Browse, ""));
        press(&mut app, "/xy");
        app.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
        assert_eq!((app.mode, app.search.as_str()), (Mode::Search, ""));
    }

    #[test]
    fn nothing_changes_while_it_is_paused() {
        let mut app = app(&[row("/a", 1.0, None)]);
        press(&mut app, "p");
        app.take(Ok(answer(&[row("/b", 1.0, None)])), Instant::now());
        assert_eq!(names(&app), ["/a"]);
        press(&mut app, " ");
        app.take(Ok(answer(&[row("/b", 1.0, None)])), Instant::now());
        assert_eq!(names(&app), ["/b"]);
    }

    #[test]
    fn the_mark_stays_with_its_row() {
        let rows: Vec<Row> = (0..9)
            .map(|number| row(&format!("/{number}"), f64::from(9 - number), None))
            .collect();
        let mut app = app(&rows);
        app.page = 4;
        for (code, expected) in [
            (KeyCode::Down, "/0"),
            (KeyCode::Down, "/1"),
            (KeyCode::PageDown, "/5"),
            (KeyCode::End, "/8"),
            (KeyCode::Down, "/8"),
            (KeyCode::Up, "/7"),
            (KeyCode::PageUp, "/3"),
            (KeyCode::Home, "/0"),
            (KeyCode::Up, "/0"),
            (KeyCode::Char('j'), "/1"),
        ] {
            app.key(code.into());
            assert_eq!(app.selected.as_deref(), Some(expected), "{code:?}");
        }
        press(&mut app, "r");
        assert_eq!(app.selected.as_deref(), Some("/1"));
        press(&mut app, "j");
        assert_eq!(app.selected.as_deref(), Some("/0"));
        press(&mut app, "\x1b");
        assert_eq!(app.selected, None);
    }

    #[test]
    fn keys_that_others_answer() {
        let mut app = app(&[]);
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(app.key(control('c')), Effect::Quit);
        assert_eq!(app.key(control('z')), Effect::Suspend);
        assert_eq!(app.key(control('l')), Effect::Redraw);
        assert_eq!(app.key(KeyCode::Char('q').into()), Effect::Quit);
        press(&mut app, "?x");
        assert_eq!(app.mode, Mode::Browse);
        press(&mut app, "?");
        assert_eq!(app.key(KeyCode::Char('q').into()), Effect::Quit);
        // While something is typed it is a letter.
        press(&mut app, "/q");
        assert_eq!(app.key(control('c')), Effect::Quit);
    }

    #[test]
    fn silence_lasts_until_an_answer() {
        let mut app = app(&[row("/a", 1.0, None)]);
        let start = Instant::now();
        app.take(Err("one".to_owned()), start);
        app.take(Err("two".to_owned()), start + Duration::from_secs(3));
        let silence = app.silence.clone().unwrap();
        assert_eq!((silence.since, silence.why.as_str()), (start, "two"));
        assert_eq!(names(&app), ["/a"]);
        app.take(Ok(answer(&[])), start);
        assert!(app.silence.is_none());
    }

    #[test]
    fn the_share_of_a_cpu_is_of_some_seconds() {
        let mut app = app(&[]);
        let mut at = |now_ms, cpu| {
            let mut answer = answer(&[]);
            answer.status.now_ms = now_ms;
            answer.status.agent = Agent {
                cpu_seconds: Some(cpu),
                ..Agent::default()
            };
            app.take(Ok(answer), Instant::now());
            app.cpu_share()
        };
        assert_eq!(at(0, 1.0), None);
        assert_eq!(at(10_000, 2.0), Some(0.1));
        assert_eq!(at(20_000, 2.5), Some(0.05));
        // Another agent.
        assert_eq!(at(21_000, 0.5), None);
        assert_eq!(at(22_000, 0.75), Some(0.25));
    }
}
