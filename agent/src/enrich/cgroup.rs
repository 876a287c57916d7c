//! The cgroup trees: ids to paths.
//!
//! A walk of cgroupfs at the start gives what is there; the kernel's events say what comes and
//! goes from then on. The walk is repeated only when an event was lost or an id is unknown.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use probes::{
    Workload,
    cgroup::{Change, Event},
};

/// Paths of removed cgroups that are still known, for events that end after their cgroup.
const REMOVED_MAX: usize = 2048;

/// Where a hierarchy is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The hierarchy's id; 0 is cgroup v2.
    pub(crate) hierarchy: u16,
    /// The folder.
    pub(crate) path: PathBuf,
    /// Which cgroup that folder is: `/` unless only a part of the tree is mounted.
    pub(crate) root: String,
}

/// Finds the hierarchies that bear labels in the text of `/proc/self/mountinfo`: v2, and the one
/// that disk I/O is charged in.
pub(crate) fn mounts(mountinfo: &str, io_hierarchy: u16) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(path), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
            continue;
        };
        let blkio = right
            .get(2)
            .is_some_and(|options| options.split(',').any(|option| option == "blkio"));
        let hierarchy = match *kind {
            "cgroup2" => 0,
            "cgroup" if blkio => io_hierarchy,
            _ => continue,
        };
        // The same tree may be mounted often; the first mount that shows most of it is best.
        let mount = Mount {
            hierarchy,
            path: PathBuf::from(unescape(path)),
            root: unescape(root),
        };
        match mounts.iter_mut().find(|other| other.hierarchy == hierarchy) {
            Some(other) if reach(&mount.root) > reach(&other.root) => *other = mount,
            Some(_) => {}
            None => mounts.push(mount),
        }
    }
    mounts
}

/// How much of a tree a mount of this root shows. In a cgroup namespace paths count from the
/// namespace's root, and what lies above is written with `..`: `/../..` is higher up than `/`.
fn reach(root: &str) -> (usize, Reverse<usize>) {
    let above = root.split('/').filter(|name| *name == "..").count();
    (above, Reverse(below_namespace(root).len()))
}

/// The root of a mount without the way up from the namespace's root. What is above that has no
/// names in there; the highest is taken for the root of the hierarchy.
fn below_namespace(root: &str) -> &str {
    let mut root = root.trim_matches('/');
    while let Some(rest) = root.strip_prefix("../") {
        root = rest;
    }
    if root == ".." { "" } else { root }
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

/// The id of every hierarchy's root.
const ROOT_ID: u64 = 1;

#[derive(Debug)]
struct Node {
    parent_id: u64,
    name: Box<str>,
    /// How many changes the trees had seen before it.
    since: u64,
}

/// What a walk of a hierarchy found.
#[derive(Debug)]
pub(crate) struct Walk {
    hierarchy: u16,
    found: HashMap<u64, (u64, Box<str>)>,
}

/// Reads a hierarchy from its folder. Takes milliseconds where there are thousands of cgroups, so
/// nobody should wait for it.
///
/// # Errors
/// When a folder cannot be read. Folders that go meanwhile are no error.
pub(crate) fn walk(mount: &Mount) -> io::Result<Walk> {
    let root_id = fs::metadata(&mount.path)?.ino();
    let mut found = HashMap::new();
    found.insert(root_id, (0, below_namespace(&mount.root).into()));
    let mut folders = vec![(mount.path.clone(), root_id)];
    while let Some((folder, parent_id)) = folders.pop() {
        for (name, path) in children(&folder)? {
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            found.insert(metadata.ino(), (parent_id, name.into_boxed_str()));
            folders.push((path, metadata.ino()));
        }
    }
    Ok(Walk {
        hierarchy: mount.hierarchy,
        found,
    })
}

/// The trees of all hierarchies that bear labels.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    nodes: HashMap<Workload, Node>,
    removed: HashMap<Workload, Box<str>>,
    removed_order: VecDeque<Workload>,
    changes: u64,
}

impl Cgroups {
    /// Takes in an event.
    pub(crate) fn apply(&mut self, event: Event) {
        let workload = Workload {
            hierarchy: event.hierarchy,
            cgroup_id: event.id,
        };
        match event.change {
            Change::Named { parent_id, name } => {
                let name = name.into_boxed_str();
                self.name(workload, parent_id, name);
            }
            Change::Removed => self.remove(workload),
        }
    }

    /// How many changes the trees have seen: to be read before a walk.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    fn name(&mut self, workload: Workload, parent_id: u64, name: Box<str>) {
        self.changes += 1;
        let node = Node {
            parent_id,
            name,
            since: self.changes,
        };
        if self.removed.remove(&workload).is_some() {
            self.removed_order.retain(|other| *other != workload);
        }
        self.nodes.insert(workload, node);
    }

    fn remove(&mut self, workload: Workload) {
        // A walk may have missed it already, ahead of its event, and kept its path.
        if !self.nodes.contains_key(&workload) && self.is_gone(workload) {
            return;
        }
        let path = self.live_path(workload);
        self.nodes.remove(&workload);
        let path = path.unwrap_or_else(|| unknown(workload)).into_boxed_str();
        if self.removed.insert(workload, path).is_none() {
            self.removed_order.push_back(workload);
        }
        if self.removed_order.len() > REMOVED_MAX
            && let Some(oldest) = self.removed_order.pop_front()
        {
            self.removed.remove(&oldest);
        }
    }

    /// The path of a cgroup from its hierarchy's root, also for a while after it is gone; `None`
    /// when it is unknown.
    pub(crate) fn path(&self, workload: Workload) -> Option<String> {
        self.live_path(workload)
            .or_else(|| Some(self.removed.get(&workload)?.to_string()))
    }

    /// All that are there, with their paths.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Workload, String)> {
        let all = self.nodes.keys();
        all.filter_map(|workload| Some((*workload, self.live_path(*workload)?)))
    }

    /// Whether a cgroup was there and is gone.
    pub(crate) fn is_gone(&self, workload: Workload) -> bool {
        self.removed.contains_key(&workload)
    }

    /// Whether a cgroup is there, or was and its path is still kept.
    pub(crate) fn is_known(&self, workload: Workload) -> bool {
        workload.cgroup_id == ROOT_ID
            || self.nodes.contains_key(&workload)
            || self.is_gone(workload)
    }

    fn live_path(&self, workload: Workload) -> Option<String> {
        // Even where no mount shows it.
        if workload.cgroup_id == ROOT_ID {
            return Some("/".to_owned());
        }
        let mut names: Vec<&str> = Vec::new();
        let mut node = self.nodes.get(&workload)?;
        loop {
            names.push(&node.name);
            if matches!(node.parent_id, 0 | ROOT_ID) {
                break;
            }
            node = self.nodes.get(&Workload {
                cgroup_id: node.parent_id,
                ..workload
            })?;
        }
        let mut path = String::new();
        for name in names.iter().rev().filter(|name| !name.is_empty()) {
            path.push('/');
            path.push_str(name);
        }
        Some(if path.is_empty() {
            "/".to_owned()
        } else {
            path
        })
    }

    /// What a walk that began when the trees had seen `changes` should have met and has not, the
    /// innermost first: paths are made of those around.
    fn missed(&self, walk: &Walk, changes: u64) -> Vec<Workload> {
        let of = |cgroup_id| Workload {
            hierarchy: walk.hierarchy,
            cgroup_id,
        };
        let mut missed = Vec::new();
        for (workload, node) in &self.nodes {
            if workload.hierarchy != walk.hierarchy
                || node.since > changes
                || walk.found.contains_key(&workload.cgroup_id)
            {
                continue;
            }
            let around: Vec<u64> = std::iter::successors(Some(node.parent_id), |id| {
                self.nodes.get(&of(*id)).map(|node| node.parent_id)
            })
            .collect();
            // Else it lies outside what this mount shows. That a pod has gone may be known already
            // where the news of its container was lost.
            if walk.found.contains_key(&ROOT_ID)
                || around
                    .iter()
                    .any(|id| walk.found.contains_key(id) || self.is_gone(of(*id)))
            {
                missed.push((Reverse(around.len()), *workload));
            }
        }
        missed.sort_unstable();
        missed.into_iter().map(|(_, workload)| workload).collect()
    }

    /// Takes in a walk that began when the trees had seen `changes`: adds what is new, and takes
    /// out what is gone. What changed meanwhile is known better from its event. Of the `unknown`,
    /// those that a walk of the whole tree did not find either are gone, unnamed.
    pub(crate) fn take_in(&mut self, walk: Walk, changes: u64, unknown: &[Workload]) {
        for workload in self.missed(&walk, changes) {
            self.remove(workload);
        }
        if walk.found.contains_key(&ROOT_ID) {
            for workload in unknown {
                if workload.hierarchy == walk.hierarchy
                    && !walk.found.contains_key(&workload.cgroup_id)
                    && !self.nodes.contains_key(workload)
                {
                    self.remove(*workload);
                }
            }
        }
        for (cgroup_id, (parent_id, name)) in walk.found {
            let workload = Workload {
                hierarchy: walk.hierarchy,
                cgroup_id,
            };
            if !self.nodes.contains_key(&workload) && !self.is_gone(workload) {
                self.name(workload, parent_id, name);
            }
        }
    }
}

fn children(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let children = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .collect();
    Ok(children)
}

/// The label of a cgroup whose name nobody saw: one of its own, so that two never share a series.
pub(crate) fn unknown(workload: Workload) -> String {
    format!("unknown:{}:{}", workload.hierarchy, workload.cgroup_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(cgroup_id: u64) -> Workload {
        Workload {
            hierarchy: 0,
            cgroup_id,
        }
    }

    fn made(id: u64, parent_id: u64, name: &str) -> Event {
        Event {
            hierarchy: 0,
            id,
            change: Change::Named {
                parent_id,
                name: name.to_owned(),
            },
        }
    }

    fn removed(id: u64) -> Event {
        Event {
            hierarchy: 0,
            id,
            change: Change::Removed,
        }
    }

    fn tree() -> Cgroups {
        let mut cgroups = Cgroups::default();
        for event in [made(1, 0, ""), made(5, 1, "kubepods"), made(9, 5, "pod-a")] {
            cgroups.apply(event);
        }
        cgroups
    }

    #[test]
    fn paths_run_from_the_root() {
        let cgroups = tree();
        assert_eq!(cgroups.path(workload(1)).as_deref(), Some("/"));
        assert_eq!(
            cgroups.path(workload(9)).as_deref(),
            Some("/kubepods/pod-a")
        );
        assert_eq!(cgroups.path(workload(7)), None);
        assert_eq!(Cgroups::default().path(workload(1)).as_deref(), Some("/"));
    }

    #[test]
    fn hierarchies_number_for_themselves() {
        let cgroups = tree();
        let blkio = Workload {
            hierarchy: 7,
            cgroup_id: 9,
        };
        assert_eq!(cgroups.path(blkio), None);
    }

    #[test]
    fn a_new_name_moves_the_children_too() {
        let mut cgroups = tree();
        cgroups.apply(made(5, 1, "renamed"));
        assert_eq!(cgroups.path(workload(9)).as_deref(), Some("/renamed/pod-a"));
    }

    #[test]
    fn a_removed_cgroup_keeps_its_path() {
        let mut cgroups = tree();
        cgroups.apply(removed(9));
        assert!(cgroups.is_gone(workload(9)));
        assert!(!cgroups.is_gone(workload(5)));
        assert_eq!(
            cgroups.path(workload(9)).as_deref(),
            Some("/kubepods/pod-a")
        );
    }

    #[test]
    fn a_cgroup_removed_twice_keeps_its_path() {
        let mut cgroups = tree();
        cgroups.apply(removed(9));
        cgroups.apply(removed(9));
        assert_eq!(
            cgroups.path(workload(9)).as_deref(),
            Some("/kubepods/pod-a")
        );
        assert_eq!(cgroups.removed_order.len(), 1);
    }

    #[test]
    fn the_paths_of_removed_cgroups_are_bounded() {
        let mut cgroups = tree();
        let count = REMOVED_MAX as u64 + 10;
        for id in 100..100 + count {
            cgroups.apply(made(id, 1, "x"));
            cgroups.apply(removed(id));
        }
        assert_eq!(cgroups.removed.len(), REMOVED_MAX);
        assert_eq!(cgroups.removed_order.len(), REMOVED_MAX);
        assert_eq!(cgroups.path(workload(100)), None);
        assert_eq!(
            cgroups.path(workload(100 + count - 1)).as_deref(),
            Some("/x")
        );
    }

    #[test]
    fn a_walk_finds_what_is_there_and_what_is_gone() {
        let root = std::env::temp_dir().join(format!("sentry-cgroup-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("c")).unwrap();
        fs::write(root.join("cgroup.procs"), "").unwrap();
        let id = |path: &str| workload(fs::metadata(root.join(path)).unwrap().ino());
        let mount = Mount {
            hierarchy: 0,
            path: root.clone(),
            root: "/".to_owned(),
        };
        let mut cgroups = Cgroups::default();
        cgroups.take_in(walk(&mount).unwrap(), cgroups.changes(), &[]);
        let (deep, other) = (id("a/b"), id("c"));
        assert_eq!(cgroups.path(deep).as_deref(), Some("/a/b"));
        assert_eq!(cgroups.nodes.len(), 4);

        fs::remove_dir(root.join("c")).unwrap();
        let before = cgroups.changes();
        let found = walk(&mount).unwrap();
        // Made after the walk had passed it.
        cgroups.apply(made(u64::MAX, 1, "young"));
        cgroups.take_in(found, before, &[]);
        assert!(cgroups.is_gone(other));
        assert!(!cgroups.is_gone(deep));
        assert!(!cgroups.is_gone(workload(u64::MAX)));

        // Gone after the walk had seen it.
        let found = walk(&mount).unwrap();
        cgroups.apply(removed(deep.cgroup_id));
        cgroups.take_in(found, cgroups.changes(), &[]);
        assert!(cgroups.is_gone(deep));
        fs::remove_dir_all(&root).unwrap();
    }

    /// A walk of a folder that holds nothing.
    fn empty(root_id: u64) -> Walk {
        Walk {
            hierarchy: 0,
            found: HashMap::from([(root_id, (0, "".into()))]),
        }
    }

    #[test]
    fn a_container_goes_with_its_pod_though_its_own_event_was_lost() {
        let mut cgroups = tree();
        cgroups.apply(made(12, 9, "app"));
        cgroups.apply(removed(9));
        assert!(!cgroups.is_gone(workload(12)));
        // Whatever a mount shows.
        cgroups.take_in(empty(40), cgroups.changes(), &[]);
        assert!(cgroups.is_gone(workload(12)) && !cgroups.is_gone(workload(5)));
    }

    #[test]
    fn what_goes_while_no_event_comes_keeps_its_path() {
        let mut cgroups = tree();
        cgroups.apply(made(12, 9, "app"));
        cgroups.take_in(empty(40), cgroups.changes(), &[]);
        assert!(!cgroups.is_gone(workload(5)), "the mount does not show it");
        cgroups.take_in(empty(5), cgroups.changes(), &[]);
        assert!(!cgroups.is_gone(workload(5)) && cgroups.is_gone(workload(9)));
        cgroups.take_in(empty(ROOT_ID), cgroups.changes(), &[]);
        assert!(cgroups.is_gone(workload(5)));
        let path = |id| cgroups.path(workload(id));
        assert_eq!(path(12).as_deref(), Some("/kubepods/pod-a/app"));
        assert_eq!(path(9).as_deref(), Some("/kubepods/pod-a"));
    }

    #[test]
    fn what_has_gone_is_not_kept_for_ever() {
        let mut cgroups = Cgroups::default();
        let count = REMOVED_MAX as u64 + 1;
        for id in 10..10 + count {
            cgroups.apply(made(id, 1, "x"));
            cgroups.apply(removed(id));
        }
        assert!(!cgroups.is_known(workload(10)));
        assert!(cgroups.is_known(workload(11)) && cgroups.is_gone(workload(11)));
        assert_eq!(cgroups.removed.len(), REMOVED_MAX);
        assert_eq!(cgroups.removed_order.len(), REMOVED_MAX);
        assert!(cgroups.nodes.is_empty());
        assert!(cgroups.is_known(workload(ROOT_ID)));
    }

    #[test]
    fn what_a_walk_of_the_whole_tree_does_not_find_is_gone() {
        let mut cgroups = Cgroups::default();
        // The tree of a container alone proves nothing.
        cgroups.take_in(empty(40), 0, &[workload(77)]);
        assert!(!cgroups.is_gone(workload(77)));
        cgroups.take_in(empty(ROOT_ID), 0, &[workload(77)]);
        assert!(cgroups.is_gone(workload(77)));
        assert_eq!(cgroups.path(workload(77)).as_deref(), Some("unknown:0:77"));
        // Its event came late.
        cgroups.apply(made(77, 1, "late"));
        assert!(!cgroups.is_gone(workload(77)));
        assert_eq!(cgroups.path(workload(77)).as_deref(), Some("/late"));
    }

    const HYBRID: &str = "\
34 33 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 33 0:30 / /sys/fs/cgroup/blk\\040io rw,relatime shared:9 - cgroup cgroup rw,blkio
36 33 0:31 /part /mnt/part rw - cgroup2 cgroup2 rw
37 33 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
38 1 254:0 / / rw - ext4 /dev/vda rw
";

    #[test]
    fn mounts_of_a_hybrid_host() {
        assert_eq!(
            mounts(HYBRID, 7),
            [
                Mount {
                    hierarchy: 7,
                    path: "/sys/fs/cgroup/blk io".into(),
                    root: "/".to_owned()
                },
                Mount {
                    hierarchy: 0,
                    path: "/sys/fs/cgroup/unified".into(),
                    root: "/".to_owned()
                },
            ]
        );
    }

    #[test]
    fn in_a_cgroup_namespace_the_highest_mount_is_best() {
        let text = "\
41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
42 31 0:38 /../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw
43 31 0:38 /.. /elsewhere rw - cgroup2 cgroup2 rw
";
        let expected = Mount {
            hierarchy: 0,
            path: "/host/sys/fs/cgroup".into(),
            root: "/../..".to_owned(),
        };
        assert_eq!(mounts(text, 0), [expected]);
        assert_eq!(below_namespace("/../.."), "");
        assert_eq!(below_namespace("/../part/of"), "part/of");
        assert_eq!(below_namespace("/"), "");
        assert_eq!(below_namespace("/..x"), "..x");
    }
}
