//! The tables: their columns, and which rows stand in what order.

use std::cmp::Ordering;

use super::answer::{Disk, Gpu, Row, Tcp};
use crate::{config::one_line, summary::duration};

/// What stands between two columns.
const GAP: u16 = 1;

/// What the name of a workload gets at least.
const NAME_WIDTH_MIN: u16 = 22;

/// What is on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    Tcp,
    Disk,
    Gpu,
    Own,
}

impl Tab {
    pub(super) const ALL: [Self; 4] = [Self::Tcp, Self::Disk, Self::Gpu, Self::Own];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Disk => "Disk",
            Self::Gpu => "GPU",
            Self::Own => "Self",
        }
    }

    /// Of the columns with numbers; Sentry itself has no table of workloads.
    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Self::Tcp => &TCP,
            Self::Disk => &DISK,
            Self::Gpu => &GPU,
            Self::Own => &[],
        }
    }

    /// Whether a workload has a row here.
    pub(super) fn has(self, row: &Row) -> bool {
        match self {
            Self::Tcp => row.tcp.is_some(),
            Self::Disk => row.disk.is_some(),
            Self::Gpu => row.gpu.is_some(),
            Self::Own => false,
        }
    }
}

/// A column with a number.
pub(super) struct Column {
    /// Stands above the title, once for all neighbours that have the same.
    pub(super) group: &'static str,
    pub(super) title: &'static str,
    pub(super) width: u16,
    value: fn(&Row) -> Option<f64>,
    show: fn(f64) -> String,
}

impl Column {
    pub(super) fn text(&self, row: &Row) -> String {
        (self.value)(row).map_or_else(|| "-".to_owned(), self.show)
    }
}

/// A column of one part of a row.
macro_rules! column {
    ($part:ident, $group:literal, $title:literal, $width:literal, $show:ident, $value:expr) => {
        Column {
            group: $group,
            title: $title,
            width: $width,
            value: |row| row.$part.as_ref().and_then($value),
            show: $show,
        }
    };
}

// What matters most stands first: narrow screens show no more.
static TCP: [Column; 10] = [
    column!(tcp, "client", "/s", 6, number, |tcp: &Tcp| Some(
        tcp.client.per_second
    )),
    column!(tcp, "client", "p50", 7, duration, |tcp: &Tcp| tcp
        .client
        .p50_seconds),
    column!(tcp, "client", "p99", 7, duration, |tcp: &Tcp| tcp
        .client
        .p99_seconds),
    column!(tcp, "failed", "/s", 6, number, |tcp: &Tcp| Some(
        tcp.failures.per_second
    )),
    column!(tcp, "server", "/s", 6, number, |tcp: &Tcp| Some(
        tcp.server.per_second
    )),
    column!(tcp, "server", "p50", 7, duration, |tcp: &Tcp| tcp
        .server
        .p50_seconds),
    column!(tcp, "server", "p99", 7, duration, |tcp: &Tcp| tcp
        .server
        .p99_seconds),
    column!(tcp, "all", "failed", 6, number, |tcp: &Tcp| Some(
        tcp.failures.total
    )),
    column!(tcp, "all", "conns", 6, number, |tcp: &Tcp| Some(
        tcp.client.total + tcp.server.total
    )),
    column!(tcp, "SYN", "retr/s", 6, number, |tcp: &Tcp| Some(
        tcp.syn_retransmits.per_second
    )),
];

static DISK: [Column; 7] = [
    column!(disk, "I/O", "/s", 6, number, |disk: &Disk| Some(
        disk.io.per_second
    )),
    column!(disk, "I/O", "p50", 7, duration, |disk: &Disk| disk
        .io
        .p50_seconds),
    column!(disk, "I/O", "p99", 7, duration, |disk: &Disk| disk
        .io
        .p99_seconds),
    column!(disk, "bytes", "/s", 7, bytes, |disk: &Disk| Some(
        disk.bytes.per_second
    )),
    column!(disk, "bytes", "all", 7, bytes, |disk: &Disk| Some(
        disk.bytes.total
    )),
    column!(disk, "errors", "all", 6, number, |disk: &Disk| Some(
        disk.errors.total
    )),
    column!(disk, "I/O", "all", 6, number, |disk: &Disk| Some(
        disk.io.total
    )),
];

static GPU: [Column; 7] = [
    column!(gpu, "of the time", "starved", 8, percent, |gpu: &Gpu| gpu
        .starved_share),
    column!(gpu, "of the time", "idle", 7, percent, |gpu: &Gpu| gpu
        .idle_share),
    column!(gpu, "launches", "/s", 6, number, |gpu: &Gpu| Some(
        gpu.launches.per_second
    )),
    column!(gpu, "launches", "all", 6, number, |gpu: &Gpu| Some(
        gpu.launches.total
    )),
    column!(gpu, "", "memory", 7, bytes, |gpu: &Gpu| Some(
        gpu.allocated_bytes
    )),
    column!(gpu, "", "procs", 6, number, |gpu: &Gpu| Some(gpu.processes)),
    column!(gpu, "errors", "all", 6, number, |gpu: &Gpu| Some(
        gpu.errors.total
    )),
];

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    /// The name first, then the columns.
    pub(super) by: usize,
    /// Otherwise than it is of use: the largest number last, the first name last.
    pub(super) reversed: bool,
}

impl Order {
    /// A row's place; what has no value is last in any order, and names decide between equals.
    fn compare(self, tab: Tab, one: &Row, other: &Row) -> Ordering {
        let turned = |ordering: Ordering| {
            if self.reversed {
                ordering.reverse()
            } else {
                ordering
            }
        };
        let by_name = || name(one).cmp(&name(other));
        let Some(column) = self.by.checked_sub(1).and_then(|at| tab.columns().get(at)) else {
            return turned(by_name());
        };
        let by_value = match ((column.value)(one), (column.value)(other)) {
            (Some(one), Some(other)) => turned(other.total_cmp(&one)),
            (one, other) => other.is_some().cmp(&one.is_some()),
        };
        by_value.then_with(by_name)
    }
}

/// The rows of a tab that have all words of `search` in their labels, in order.
pub(super) fn rows<'a>(all: &'a [Row], tab: Tab, search: &str, order: Order) -> Vec<&'a Row> {
    let search = search.to_lowercase();
    let words: Vec<&str> = search.split_whitespace().collect();
    let wanted = |row: &&Row| {
        let whole = whole(row).to_lowercase();
        tab.has(row) && words.iter().all(|word| whole.contains(word))
    };
    let mut rows: Vec<&Row> = all.iter().filter(wanted).collect();
    rows.sort_by(|one, other| order.compare(tab, one, other));
    rows
}

/// What a workload is called: its place in Kubernetes, or else its cgroup.
pub(super) fn name(row: &Row) -> String {
    let label = |name: &str| row.labels.get(name).map_or("", String::as_str);
    let place = if label("pod").is_empty() {
        ["namespace", "workload_kind", "workload", "container"]
    } else {
        ["namespace", "pod", "container", ""]
    };
    let place: Vec<&str> = place.into_iter().map(label).collect();
    let place: Vec<&str> = place.into_iter().filter(|part| !part.is_empty()).collect();
    let mut name = match label("cgroup") {
        "" if place.is_empty() => "node".to_owned(),
        cgroup if place.is_empty() => cgroup.to_owned(),
        _ => place.join("/"),
    };
    if !label("process").is_empty() {
        name = format!("{} in {name}", label("process"));
    }
    one_line(&name)
}

/// All labels.
pub(super) fn whole(row: &Row) -> String {
    let labels = row
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    one_line(&labels.collect::<Vec<_>>().join(" "))
}

/// What rows are sorted by, as the head of the table says it.
pub(super) fn title(tab: Tab, order: Order) -> String {
    let column = order.by.checked_sub(1).and_then(|at| tab.columns().get(at));
    column.map_or_else(
        || "workload".to_owned(),
        |Column { group, title, .. }| format!("{group} {title}").trim().to_owned(),
    )
}

/// The columns that a screen has room for, and what is left for the name. What rows are sorted by is among them.
pub(super) fn fitting(tab: Tab, order: Order, width: u16) -> (Vec<usize>, u16) {
    let columns = tab.columns();
    let mut left = width.saturating_sub(NAME_WIDTH_MIN);
    let sorted_by = order.by.checked_sub(1).filter(|by| *by < columns.len());
    if let Some(by) = sorted_by {
        left = left.saturating_sub(columns[by].width + GAP);
    }
    let mut shown: Vec<usize> = sorted_by.into_iter().collect();
    for (at, column) in columns.iter().enumerate() {
        if sorted_by == Some(at) {
            continue;
        }
        let Some(rest) = left.checked_sub(column.width + GAP) else {
            break;
        };
        left = rest;
        shown.push(at);
    }
    shown.sort_unstable();
    let taken: u16 = shown.iter().map(|at| columns[*at].width + GAP).sum();
    (shown, width.saturating_sub(taken))
}

/// A number of at most six characters.
pub(super) fn number(value: f64) -> String {
    scaled(value, &["", "k", "M", "G", "T"], "")
}

/// Bytes in seven characters.
pub(super) fn bytes(value: f64) -> String {
    scaled(value, &[" ", " k", " M", " G", " T"], "B")
}

/// Three digits or four, with a prefix.
fn scaled(value: f64, prefixes: &[&str], unit: &str) -> String {
    let (mut value, mut at) = (value, 0);
    // What is rounded to 10000 is written with the next prefix.
    while value >= if at == 0 { 9999.5 } else { 999.5 } && at + 1 < prefixes.len() {
        value /= 1000.0;
        at += 1;
    }
    let digits = match value {
        _ if at == 0 && value.fract() == 0.0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}{unit}", prefixes[at])
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::top::answer::{Count, Durations};

    pub(in crate::top) fn row(cgroup: &str, connects: f64, p99: Option<f64>) -> Row {
        Row {
            id: cgroup.to_owned(),
            labels: [("cgroup".to_owned(), cgroup.to_owned())].into(),
            lives: true,
            tcp: Some(Tcp {
                client: Durations {
                    total: connects * 10.0,
                    per_second: connects,
                    p50_seconds: p99.map(|p99| p99 / 2.0),
                    p99_seconds: p99,
                },
                failures: Count {
                    total: 3.0,
                    per_second: 0.25,
                },
                ..Tcp::default()
            }),
            ..Row::default()
        }
    }

    fn order(by: usize, reversed: bool) -> Order {
        Order { by, reversed }
    }

    #[test]
    fn rows_are_sorted_and_searched() {
        let all = [
            row("/b", 2.0, None),
            row("/a", 2.0, Some(0.1)),
            row("/c", 30.0, Some(0.2)),
            Row::default(),
        ];
        let names = |search: &str, order| -> Vec<String> {
            let rows = rows(&all, Tab::Tcp, search, order);
            rows.into_iter().map(name).collect()
        };
        assert_eq!(names("", order(0, false)), ["/a", "/b", "/c"]);
        assert_eq!(names("", order(0, true)), ["/c", "/b", "/a"]);
        assert_eq!(names("", order(1, false)), ["/c", "/a", "/b"]);
        assert_eq!(names("", order(1, true)), ["/a", "/b", "/c"]);
        // Without a p99 it is the last, whichever way.
        assert_eq!(names("", order(3, false)), ["/c", "/a", "/b"]);
        assert_eq!(names("", order(3, true)), ["/a", "/c", "/b"]);
        assert_eq!(names("CGROUP /B", order(0, false)), ["/b"]);
        assert_eq!(names("/b /a", order(0, false)), [""; 0]);
    }

    #[test]
    fn names_say_where_a_workload_is() {
        let named = |labels: &[(&str, &str)]| {
            let labels = labels.iter();
            name(&Row {
                labels: labels
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
                ..Row::default()
            })
        };
        let pod = [("namespace", "shop"), ("pod", "cart-0"), ("cgroup", "/x")];
        assert_eq!(named(&pod), "shop/cart-0");
        let container = [pod[0], pod[1], ("container", "app"), ("process", "train")];
        assert_eq!(named(&container), "train in shop/cart-0/app");
        let workload = [pod[0], ("workload_kind", "Job"), ("workload", "train")];
        assert_eq!(named(&workload), "shop/Job/train");
        assert_eq!(named(&[("cgroup", "/a\x1b[2J")]), "/a\\u{1b}[2J");
        assert_eq!(named(&[]), "node");
    }

    #[test]
    fn narrow_screens_show_what_matters_and_what_is_sorted_by() {
        assert_eq!(
            fitting(Tab::Tcp, order(1, false), 80),
            ((0..7).collect(), 27)
        );
        assert_eq!(
            fitting(Tab::Tcp, order(10, false), 80),
            (vec![0, 1, 2, 3, 4, 5, 9], 28)
        );
        assert_eq!(
            fitting(Tab::Tcp, order(1, false), 200),
            ((0..10).collect(), 126)
        );
        assert_eq!(fitting(Tab::Disk, order(0, false), 80).0.len(), 7);
        assert_eq!(fitting(Tab::Gpu, order(0, false), 80).0.len(), 7);
        assert_eq!(fitting(Tab::Gpu, order(2, false), 10), (vec![1], 2));
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (9.996, "10.0"),
            (123.4, "123"),
            (9999.0, "9999"),
            (10_000.0, "10.0k"),
            (999_600.0, "1.00M"),
            (123_456_789.0, "123M"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(123_400_000.0), "123 MB");
        assert_eq!(percent(0.0123), "1.2 %");
    }

    /// Every value fits into its column.
    #[test]
    fn columns_are_wide_enough() {
        let most = [0.0, 3.814e-6, 0.999_96, 9999.0, 99_999.0, 1e12, 16.0];
        for tab in Tab::ALL {
            for column in tab.columns() {
                let shown = |value| (column.show)(value).len() <= column.width.into();
                let values = most.iter().copied().filter(|value| match column.title {
                    "starved" | "idle" => *value <= 1.0,
                    "p50" | "p99" => *value <= 16.0,
                    _ => true,
                });
                for value in values {
                    assert!(
                        shown(value),
                        "{} {}: {value}",
                        column.group,
                        (column.show)(value)
                    );
                }
            }
        }
    }
}
