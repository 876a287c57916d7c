//! Containers and pods: every event under its namespace, pod and container, whichever runtime made it, however short it
//! lived, and whatever becomes of the API server.

use crate::agent::Agent;
use crate::bystander::undisturbed;
use crate::exposition::{Exposition, Format, Labels, as_count};
use crate::host::{Folder, disk_cgroup, is_v1_only, output, roots, skipped, turn, wait_for};
use crate::load::{Server, assert_all};
use crate::node::{NAME, Node, Seat, id, slice, uid, wait_until_up};
use crate::reload::Site;
use sentry_bench::kubernetes::{Container, Cut, Fault, Pod};
use sentry_bench::sandbox::LoopDevice;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) const CONNECTS: &str = "sentry_tcp_handshake_duration_seconds_count";
pub(crate) const IO: &str = "sentry_disk_io_duration_seconds_count";
const BYTES: &str = "sentry_disk_bytes_total";
const MIB: u64 = 1 << 20;

/// Whose processes run in a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
}

impl Owner {
    pub(crate) fn new(namespace: &str, pod: &str, container: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
        }
    }

    fn of(labels: &Labels) -> Self {
        Self::new(&labels["namespace"], &labels["pod"], &labels["container"])
    }
}

/// All samples of a metric by owner, below a path of cgroups or anywhere.
pub(crate) fn by_owner(
    scrape: &Exposition,
    metric: &str,
    further: &[(&str, &str)],
) -> BTreeMap<Owner, u64> {
    let mut found = BTreeMap::new();
    for sample in scrape.matching(metric, further) {
        *found.entry(Owner::of(&sample.labels)).or_default() += as_count(sample.value);
    }
    found
}

/// A container on the node, and how much it does: a number that no other has.
struct Resident {
    seat: Seat,
    owner: Owner,
    number: u64,
}

/// The UID by which the kubelet knows a static pod.
const STATIC_UID: &str = "d6ab9c04e1c1a0d7a3a8ee2e40e4a9f6";

/// Tells the API server of the residents' pods.
fn announce_all(node: &Node) {
    let running = |name: &str, scheme: &str, number: u64| {
        Container::running(name, &format!("{scheme}://{}", id(number)))
    };
    let mut web = Pod::new(NAME, "shop", "web-0", &uid(1))
        .owned_by("StatefulSet", "web")
        .labelled("app", "web")
        .labelled("team", "checkout");
    web.containers.push(running("app", "containerd", 1));
    web.init_containers = vec![
        Container {
            ended: true,
            ..running("migrate", "containerd", 2)
        },
        Container {
            sidecar: true,
            ..running("proxy", "containerd", 3)
        },
    ];
    web.ephemeral_containers
        .push(running("debugger", "containerd", 4));
    let cart = Pod::new(NAME, "shop", "cart-5d9c7b8f6d-x2v9k", &uid(2))
        .owned_by("ReplicaSet", "cart-5d9c7b8f6d")
        .labelled("pod-template-hash", "5d9c7b8f6d")
        .labelled("app", "cart")
        .with("cart", &format!("cri-o://{}", id(5)));
    let report = Pod::new(NAME, "jobs", "report-29384715-8x7zq", &uid(3))
        .owned_by("Job", "report-29384715")
        .with("report", &format!("containerd://{}", id(6)));
    let etcd = Pod::new(NAME, "kube-system", "etcd-node-1", &uid(4))
        .mirror_of(STATIC_UID)
        .with("etcd", &format!("containerd://{}", id(7)));
    let agent = Pod::new(NAME, "infra", "agent-q5kz2", &uid(5))
        .owned_by("DaemonSet", "agent")
        .with("agent", &format!("docker://{}", id(8)));
    let inner = Pod::new(NAME, "shop", "nested", &uid(6)).with("nested", &id(9));
    let builder = Pod::new(NAME, "ci", "builder", &uid(7)).with("dind", &id(11));
    for pod in [&web, &cart, &report, &etcd, &agent, &inner, &builder] {
        node.api.apply(pod);
    }
    // Others' pods are none of this node's business.
    node.api
        .apply(&Pod::new("node-2", "shop", "web-1", &uid(99)).with("app", &id(99)));
}

/// One of everything that may run on a node, laid out as the kubelet and each runtime do it.
fn residents(node: &Node) -> Vec<Resident> {
    announce_all(node);
    node.docker_state(&id(20), "registry");

    let burstable = slice("burstable", 1);
    let scope = |number: u64| format!("cri-containerd-{}.scope", id(number));
    let all = [
        (format!("{burstable}/{}", scope(1)), ("shop", "web-0", "app")),
        (format!("{burstable}/{}", scope(2)), ("shop", "web-0", "migrate")),
        (format!("{burstable}/{}", scope(3)), ("shop", "web-0", "proxy")),
        (format!("{burstable}/{}", scope(4)), ("shop", "web-0", "debugger")),
        (
            format!("{}/crio-{}.scope/container", slice("besteffort", 2), id(5)),
            ("shop", "cart-5d9c7b8f6d-x2v9k", "cart"),
        ),
        // The cgroupfs driver, a guaranteed pod.
        (
            format!("/kubepods/pod{}/{}", uid(3), id(6)),
            ("jobs", "report-29384715-8x7zq", "report"),
        ),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC_UID}.slice/{}",
                scope(7)
            ),
            ("kube-system", "etcd-node-1", "etcd"),
        ),
        (
            format!("{}/docker-{}.scope", slice("", 5), id(8)),
            ("infra", "agent-q5kz2", "agent"),
        ),
        // A node of kind, itself a container.
        (
            format!(
                "/docker/{}/kubelet/kubepods/besteffort/pod{}/{}",
                id(10),
                uid(6),
                id(9)
            ),
            ("shop", "nested", "nested"),
        ),
        // Docker in a pod: nobody's container, and the pod's all the same.
        (
            format!(
                "/kubepods/besteffort/pod{}/{}/docker/{}",
                uid(7),
                id(11),
                id(12)
            ),
            ("ci", "builder", "dind"),
        ),
        // Outside of Kubernetes.
        (
            format!("/system.slice/docker-{}.scope", id(20)),
            ("", "", "registry"),
        ),
        (
            format!("/machine.slice/libpod-{}.scope/container", id(21)),
            ("", "", &*id(21)),
        ),
        ("/system.slice/sentry-test.service".to_owned(), ("", "", "")),
        (
            "/user.slice/user-4242.slice/session-7.scope".to_owned(),
            ("", "", ""),
        ),
    ]
    .map(|(path, (namespace, pod, container))| (path, Owner::new(namespace, pod, container)));
    all.into_iter()
        .zip(3..)
        .map(|((path, owner), number)| Resident {
            seat: node.cgroup(&path),
            owner,
            number,
        })
        .collect()
}

/// What each resident does, once: so many connects, reads and writes, the same number of none.
fn live(residents: &[Resident], device: &LoopDevice, port: u64) {
    let file = device.path().display();
    for Resident { seat, number, .. } in residents {
        let connects = seat.run(&format!("connect --to 127.0.0.1:{port} --count {number}"));
        assert_all(&connects, "connected", *number);
        let reads = 10 + number;
        seat.run(&format!("read --file {file} --direct --count {reads}"));
        let writes = 40 + number;
        seat.run(&format!("write --file {file} --direct --count {writes}"));
    }
}

/// The sums by owner that follow from it.
fn expected(residents: &[Resident], of: impl Fn(u64) -> u64) -> BTreeMap<Owner, u64> {
    let mut sums = BTreeMap::new();
    for Resident { owner, number, .. } in residents {
        *sums.entry(owner.clone()).or_default() += of(*number);
    }
    sums
}

/// The samples of the residents: theirs are the only ones below these paths.
fn of_residents(
    scrape: &Exposition,
    residents: &[Resident],
    metric: &str,
    further: &[(&str, &str)],
) -> BTreeMap<Owner, u64> {
    let paths: Vec<&str> = residents
        .iter()
        .map(|each| each.seat.path.as_str())
        .collect();
    let mut found = BTreeMap::new();
    for sample in scrape.matching(metric, further) {
        let cgroup = sample.labels["cgroup"].as_str();
        // A container's own cgroup stands for those in it.
        let ours = |path: &&str| path.starts_with(cgroup) && cgroup.len() > 1;
        if paths.iter().any(ours) {
            *found.entry(Owner::of(&sample.labels)).or_default() += as_count(sample.value);
        }
    }
    found
}

#[test]
fn every_event_is_under_its_pod() {
    turn!("every_event_is_under_its_pod");
    let node = Node::new();
    let residents = residents(&node);
    let agent = node.agent("--probes tcp,disk");
    let listener = Server::listen("", &[]);
    let port = listener.port();
    let device = LoopDevice::new(MIB).unwrap();
    let name = device.name();
    undisturbed(&device, || {
        let of_device = |operation: &'static str| [("device", name), ("operation", operation)];
        let look = |scrape: &Exposition| {
            [
                of_residents(scrape, &residents, CONNECTS, &[("role", "client")]),
                of_residents(scrape, &residents, IO, &of_device("read")),
                of_residents(scrape, &residents, BYTES, &of_device("write")),
            ]
        };
        let before = look(&agent.scrape());
        live(&residents, &device, port);
        let mut found = look(&agent.scrape());
        for (found, before) in found.iter_mut().zip(before) {
            for (owner, count) in before {
                *found.get_mut(&owner).unwrap() -= count;
            }
        }
        let wanted = [
            expected(&residents, |number| number),
            expected(&residents, |number| 10 + number),
            expected(&residents, |number| (40 + number) * 4096),
        ];
        (found, wanted)
    });
    // The dead keep their names and their counts.
    let before = agent.scrape();
    for resident in &residents {
        node.remove(&resident.seat);
    }
    let clients =
        |scrape: &Exposition| of_residents(scrape, &residents, CONNECTS, &[("role", "client")]);
    hold(Duration::from_secs(2), || {
        assert_eq!(clients(&agent.scrape()), clients(&before));
    });
    let scrape = agent.scrape();
    assert_eq!(
        by_owner(&scrape, CONNECTS, &[("cgroup", "other")]),
        [].into()
    );
    agent.stop();
}

/// Asserts something time and again.
fn hold(duration: Duration, assert: impl Fn()) {
    let start = Instant::now();
    while start.elapsed() < duration {
        assert();
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The client handshakes of all that have a pod or a container, by these labels.
fn connects_by(scrape: &Exposition, labels: &[&str]) -> BTreeMap<Vec<String>, u64> {
    let mut found = BTreeMap::new();
    for sample in scrape.matching(CONNECTS, &[("role", "client")]) {
        let values: Vec<String> = labels
            .iter()
            .map(|label| sample.labels[*label].clone())
            .collect();
        *found.entry(values).or_default() += as_count(sample.value);
    }
    found
}

/// A row of [`connects_by`].
fn row(labels: &[&str], count: u64) -> (Vec<String>, u64) {
    let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
    (labels, count)
}

fn assert_by_pod(scrape: &Exposition, residents: &[Resident]) {
    let by_pod = [
        "namespace",
        "pod",
        "container",
        "cgroup",
        "label_app",
        "label_team",
    ];
    let found = connects_by(scrape, &by_pod);
    let web = slice("burstable", 1);
    let cart = slice("besteffort", 2);
    for (labels, count) in [
        row(
            &["shop", "web-0", "", &web, "web", "checkout"],
            3 + 4 + 5 + 6,
        ),
        row(&["shop", "cart-5d9c7b8f6d-x2v9k", "", &cart, "cart", ""], 7),
        row(
            &[
                "ci",
                "builder",
                "",
                &format!("/kubepods/besteffort/pod{}", uid(7)),
                "",
                "",
            ],
            12,
        ),
        row(&["", "", "registry", &residents[10].seat.path, "", ""], 13),
        row(
            &["", "", "", "/system.slice/sentry-test.service", "", ""],
            15,
        ),
    ] {
        assert_eq!(found.get(&labels), Some(&count), "{labels:?} in {found:#?}");
    }
}

fn assert_by_workload(scrape: &Exposition, residents: &[Resident]) {
    let by_workload = [
        "namespace",
        "workload_kind",
        "workload",
        "pod",
        "container",
        "cgroup",
        "label_team",
    ];
    let found = connects_by(scrape, &by_workload);
    for (labels, count) in [
        row(&["shop", "StatefulSet", "web", "", "", "", "checkout"], 18),
        row(&["shop", "Deployment", "cart", "", "", "", ""], 7),
        row(&["jobs", "CronJob", "report", "", "", "", ""], 8),
        row(&["kube-system", "Pod", "etcd-node-1", "", "", "", ""], 9),
        row(&["infra", "DaemonSet", "agent", "", "", "", ""], 10),
        row(
            &[
                "",
                "Container",
                "registry",
                "",
                "",
                &residents[10].seat.path,
                "",
            ],
            13,
        ),
        row(
            &[
                "",
                "Unit",
                "sentry-test.service",
                "",
                "",
                "/system.slice/sentry-test.service",
                "",
            ],
            15,
        ),
    ] {
        assert_eq!(found.get(&labels), Some(&count), "{labels:?} in {found:#?}");
    }
}

/// A pod of cart's Deployment, and its container's cgroup.
fn pod_of_cart(node: &Node, number: u64) -> (Pod, Seat) {
    let pod = Pod::new(
        NAME,
        "shop",
        &format!("cart-5d9c7b8f6d-{number}"),
        &uid(number),
    )
    .owned_by("ReplicaSet", "cart-5d9c7b8f6d")
    .labelled("pod-template-hash", "5d9c7b8f6d")
    .labelled("app", "cart")
    .with("cart", &format!("containerd://{}", id(number)));
    let slice = slice("besteffort", number);
    let seat = node.cgroup(&format!("{slice}/cri-containerd-{}.scope", id(number)));
    (pod, seat)
}

/// Replaces the pod of cart's Deployment, which has counted 7, and gives another one a new label.
fn assert_no_sum_of_cart_falls(node: &Node, workloads: &Agent, old: &Seat, to: &str) {
    let of_team = |team: &str| {
        let found = connects_by(&workloads.scrape(), &["workload", "label_team"]);
        let labels = ["cart", team].map(str::to_owned).to_vec();
        found.get(&labels).copied().unwrap_or_default()
    };
    let (again, seat) = pod_of_cart(node, 30);
    node.announce(workloads, &again);
    seat.run(&format!("{to} --count 100"));
    assert_eq!(of_team(""), 107);
    // A pod of the same owner takes the counts over of one that is gone and, after a second, forgotten.
    node.remove(old);
    hold(Duration::from_secs(4), || assert_eq!(of_team(""), 107));
    // One that is relabelled takes nothing along that others share.
    let (other, seat) = pod_of_cart(node, 31);
    node.announce(workloads, &other);
    seat.run(&format!("{to} --count 5"));
    assert_eq!(of_team(""), 112);
    node.api.apply(&other.labelled("team", "new"));
    hold(Duration::from_secs(4), || assert_eq!(of_team(""), 112));
    assert_eq!(of_team("new"), 0);
    seat.run(&format!("{to} --count 10"));
    assert_eq!((of_team(""), of_team("new")), (112, 10));
}

#[test]
fn what_is_told_apart_less_finely_adds_up() {
    turn!("what_is_told_apart_less_finely_adds_up");
    let node = Node::new();
    let residents = residents(&node);
    let start = |by: &str| {
        node.agent(&format!(
            "--probes tcp --series.retention 1s --aggregate-by {by} --kubernetes.pod-labels app,team"
        ))
    };
    let (pods, workloads, nodes) = (start("pod"), start("workload"), start("node"));
    let listener = Server::listen("", &[]);
    let to = format!("connect --to 127.0.0.1:{}", listener.port());
    for Resident { seat, number, .. } in &residents {
        seat.run(&format!("{to} --count {number}"));
    }
    assert_by_pod(&pods.scrape(), &residents);
    assert_by_workload(&workloads.scrape(), &residents);
    let all: u64 = residents.iter().map(|resident| resident.number).sum();
    let whole = |agent: &Agent| {
        let found = connects_by(
            &agent.scrape(),
            &["namespace", "pod", "container", "cgroup"],
        );
        let (labels, count) = found.first_key_value().unwrap();
        assert_eq!(
            (found.len(), labels),
            (1, &vec![String::new(); 4]),
            "{found:?}"
        );
        *count
    };
    let before = whole(&nodes);
    assert!(before >= all, "{before} of {all}");

    assert_no_sum_of_cart_falls(&node, &workloads, &residents[4].seat, &to);
    assert!(whole(&nodes) >= before + 100);
    for agent in [pods, workloads, nodes] {
        agent.stop();
    }
}

#[test]
fn a_container_of_50_ms_is_named_in_the_next_scrape() {
    turn!("a_container_of_50_ms_is_named_in_the_next_scrape");
    let node = Node::new();
    let agent = node.agent("--probes tcp");
    let listener = Server::listen("", &[]);
    let args = format!("connect --to 127.0.0.1:{} --count 1", listener.port());
    for round in 0..20 {
        let number = 100 + round;
        let name = format!("job-{round}");
        let pod = Pod::new(NAME, "jobs", &name, &uid(number));
        // Every other pod is known to the API server alone, by its UID: its status, with the ids of containers, comes
        // later than such a life lasts. Of the others, the agent knows only what containerd wrote.
        let by_api = round % 2 == 0;
        let container = if by_api {
            node.announce(&agent, &pod);
            id(number)
        } else {
            node.containerd_state(&id(number), &pod, "main");
            "main".to_owned()
        };
        let start = Instant::now();
        let seat = node.cgroup(&format!(
            "{}/cri-containerd-{}.scope",
            slice("burstable", number),
            id(number)
        ));
        assert_all(&seat.run(&args), "connected", 1);
        std::thread::sleep(Duration::from_millis(50).saturating_sub(start.elapsed()));
        node.remove(&seat);
        if !by_api {
            node.forget_state(&id(number));
        }
        let labels = [
            ("namespace", "jobs"),
            ("pod", &*name),
            ("container", &*container),
            ("cgroup", &*seat.path),
            ("role", "client"),
        ];
        assert_eq!(agent.scrape().value(CONNECTS, &labels), 1.0, "{name}");
    }
    agent.stop();
}

#[test]
fn names_that_come_late_take_the_counts_along() {
    turn!("names_that_come_late_take_the_counts_along");
    let node = Node::new();
    let agent = node.agent("--probes tcp --kubernetes.pod-labels app");
    let listener = Server::listen("", &[]);
    let args = |count: u64| format!("connect --to 127.0.0.1:{} --count {count}", listener.port());
    let seat = node.cgroup(&format!(
        "{}/cri-containerd-{}.scope",
        slice("burstable", 1),
        id(1)
    ));
    let labels = ["namespace", "pod", "container", "label_app"];
    let said = || {
        let scrape = agent.scrape();
        let mut found = Vec::new();
        for sample in scrape.matching(CONNECTS, &[("cgroup", &seat.path), ("role", "client")]) {
            let values = labels.map(|label| sample.labels[label].clone());
            found.push((values.join(" "), as_count(sample.value)));
        }
        found
    };
    let becomes = |label: &str, count: u64| {
        wait_for(label, Duration::from_secs(10), || {
            (said() == [(label.to_owned(), count)]).then_some(())
        });
    };
    seat.run(&args(3));
    let nameless = format!("  {} ", id(1));
    assert_eq!(said(), [(nameless, 3)]);
    let mut pod = Pod::new(NAME, "shop", "web-0", &uid(1));
    node.api.apply(&pod);
    becomes(&format!("shop web-0 {} ", id(1)), 3);
    seat.run(&args(2));
    pod = pod.with("app", &format!("containerd://{}", id(1)));
    node.api.apply(&pod);
    becomes("shop web-0 app ", 5);
    pod = pod.labelled("app", "web");
    node.api.apply(&pod);
    becomes("shop web-0 app web", 5);
    pod = pod.labelled("app", "web2");
    node.api.apply(&pod);
    becomes("shop web-0 app web2", 5);
    // What is gone keeps the names that it had.
    node.api.delete(&pod);
    seat.run(&args(1));
    node.remove(&seat);
    becomes("shop web-0 app web2", 6);
    agent.stop();
}

/// Those who are told since when a series counts would count twice what two series say.
#[test]
fn where_beginnings_are_told_no_event_is_in_two_series() {
    turn!("where_beginnings_are_told_no_event_is_in_two_series");
    let node = Node::new();
    let agent = node.agent("--probes tcp --metrics.created");
    let listener = Server::listen("", &[]);
    let args = |count: u64| format!("connect --to 127.0.0.1:{} --count {count}", listener.port());
    let [late, early] = [1, 2].map(|number| {
        let scope = format!("cri-containerd-{}.scope", id(number));
        node.cgroup(&format!("{}/{scope}", slice("burstable", number)))
    });
    // Names, events, and since when they are counted.
    let said = |seat: &Seat| {
        let response = agent.get("/metrics", &["Accept: application/openmetrics-text"]);
        let scrape = Exposition::parse(&response.text(), Format::OpenMetrics);
        let wanted = [("cgroup", &*seat.path), ("role", "client")];
        let created = CONNECTS.replace("_count", "_created");
        let counts = scrape.matching(CONNECTS, &wanted);
        let mut found: Vec<_> = counts
            .zip(scrape.matching(&created, &wanted))
            .map(|(count, created)| {
                assert_eq!(count.labels, created.labels);
                (
                    Owner::of(&count.labels),
                    as_count(count.value),
                    created.value,
                )
            })
            .collect();
        found.sort_by(|one, other| one.2.total_cmp(&other.2));
        found
    };
    late.run(&args(3));
    let [(nameless, 3, first)] = &said(&late)[..] else {
        panic!("{:?}", said(&late));
    };
    let pod = Pod::new(NAME, "shop", "web-0", &uid(1));
    node.api
        .apply(&pod.with("app", &format!("containerd://{}", id(1))));
    wait_for("name", Duration::from_secs(10), || {
        (said(&late).len() == 2).then_some(())
    });
    late.run(&args(2));
    let [(old, 3, begun), (named, 2, renamed)] = &said(&late)[..] else {
        panic!("{:?}", said(&late));
    };
    assert_eq!((old, begun), (nameless, first));
    assert_ne!(named, nameless);
    assert!(renamed > begun, "{begun} {renamed}");
    // Nobody has seen this one before it had its name.
    early.run(&args(4));
    let pod = Pod::new(NAME, "shop", "web-1", &uid(2));
    node.api
        .apply(&pod.with("app", &format!("containerd://{}", id(2))));
    // To ask whether the name has come would be to look.
    std::thread::sleep(Duration::from_secs(3));
    let [(owner, 4, _)] = &said(&early)[..] else {
        panic!("{:?}", said(&early));
    };
    assert_eq!(*owner, Owner::new("shop", "web-1", "app"));
    agent.stop();
}

/// What was counted stays under the old labels for a while, and goes on where they say the same as before.
#[test]
fn other_labels_of_pods_are_shown_after_a_reload() {
    turn!("other_labels_of_pods_are_shown_after_a_reload");
    let node = Node::new();
    let site = Site::new("kubernetes.pod-labels: app\n");
    let file = site.file();
    let agent = node.agent(&format!("--probes tcp --config.file {}", file.display()));
    let listener = Server::listen("", &[]);
    let args = |count: u64| format!("connect --to 127.0.0.1:{} --count {count}", listener.port());
    let in_pod = |number: u32| {
        let path = format!(
            "{}/cri-containerd-{}.scope",
            slice("burstable", number.into()),
            id(number.into())
        );
        node.cgroup(&path)
    };
    let pods = [1, 2].map(|number: u32| {
        let id = format!("containerd://{}", id(number.into()));
        let name = format!("web-{number}");
        Pod::new(NAME, "shop", &name, &uid(number.into()))
            .with("app", &id)
            .labelled("app", "web")
    });
    let [labelled, plain] = [1, 2].map(in_pod);
    let [first, second] = pods;
    node.announce(&agent, &first.labelled("team", "cart"));
    node.announce(&agent, &second);
    let said = |seat: &Seat| {
        let scrape = agent.scrape();
        let mut found = Vec::new();
        for sample in scrape.matching(CONNECTS, &[("cgroup", &seat.path), ("role", "client")]) {
            let value = |label: &str| sample.labels.get(label).cloned().unwrap_or_default();
            let labels = format!("{} {}", value("label_app"), value("label_team"));
            found.push((labels, as_count(sample.value)));
        }
        found.sort();
        found
    };
    let one = |labels: &str, count: u64| (labels.to_owned(), count);
    for seat in [&labelled, &plain] {
        seat.run(&args(3));
        assert_eq!(said(seat), [one("web ", 3)]);
    }
    assert_eq!(
        site.reload(&agent, "kubernetes.pod-labels: [team, app]\n"),
        "the configuration was read anew; changed: kubernetes.pod-labels"
    );
    assert_eq!(said(&labelled), [one("web ", 3), one("web cart", 0)]);
    assert_eq!(said(&plain), [one("web ", 3)]);
    for seat in [&labelled, &plain] {
        seat.run(&args(2));
    }
    assert_eq!(said(&labelled), [one("web ", 3), one("web cart", 2)]);
    assert_eq!(said(&plain), [one("web ", 5)]);
    agent.stop();
}

#[test]
fn an_api_server_that_fails_costs_no_event() {
    turn!("an_api_server_that_fails_costs_no_event");
    let mut node = Node::new();
    let residents = residents(&node);
    let (web, web_counts) = (&residents[0], |scrape: &Exposition| {
        scrape.count(
            CONNECTS,
            &[("pod", "web-0"), ("container", "app"), ("role", "client")],
        )
    });
    let agent = node.agent("--probes tcp");
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{}", listener.port());
    let up = |scrape: &Exposition| scrape.value("sentry_kubernetes_watch_up", &[]);
    let errors = |reason: &str| {
        agent.scrape().value(
            "sentry_kubernetes_watch_errors_total",
            &[("reason", reason)],
        )
    };
    let goes_down = |reason: &str| {
        wait_for(reason, Duration::from_secs(20), || {
            let scrape = agent.scrape();
            (up(&scrape) == 0.0 && errors(reason) >= 1.0).then_some(())
        });
    };
    let mut connects = 0;
    let mut number = 50;
    // While it is down, what is known is named; when it is back, so is what came meanwhile.
    let mut outlast =
        |reason: &str, down: &mut dyn FnMut(&mut Node), up: &mut dyn FnMut(&mut Node)| {
            down(&mut node);
            goes_down(reason);
            web.seat.run(&format!("{connect} --count 2"));
            connects += 2;
            assert_eq!(web_counts(&agent.scrape()), connects, "{reason}");
            let name = format!("late-{number}");
            let late = Pod::new(NAME, "shop", &name, &uid(number)).with("app", &id(number));
            node.api.apply(&late);
            let seat = node.cgroup(&format!(
                "{}/cri-containerd-{}.scope",
                slice("burstable", number),
                id(number)
            ));
            seat.run(&format!("{connect} --count 3"));
            up(&mut node);
            wait_until_up(&agent);
            wait_for("a name", Duration::from_secs(20), || {
                (agent
                    .scrape()
                    .count(CONNECTS, &[("pod", &*name), ("container", "app")])
                    == 3)
                    .then_some(())
            });
            number += 1;
        };
    outlast(
        "forbidden",
        &mut |node| {
            node.api.set_fault(Some(Fault::Answer(403)));
            node.api.cut_watches(Cut::MidLine);
        },
        &mut |node| node.api.set_fault(None),
    );
    outlast("unreachable", &mut |node| node.api.stop(), &mut |node| {
        node.api.resume().unwrap();
    });
    let before = errors("expired");
    outlast(
        "other",
        &mut |node| {
            node.api.set_fault(Some(Fault::Answer(500)));
            node.api.cut_watches(Cut::Expired);
        },
        &mut |node| {
            node.api.compact();
            node.api.set_fault(None);
        },
    );
    assert!(errors("expired") > before);
    let sync = agent
        .scrape()
        .value("sentry_kubernetes_last_sync_timestamp_seconds", &[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    assert!((now.unwrap().as_secs_f64() - sync).abs() < 60.0, "{sync}");
    agent.stop();
}

/// Whether disk I/O belongs to cgroups of v2: those of v1 know no owner of what is written back.
fn io_is_in_v2(test: &str) -> bool {
    let is = roots().v2 == roots().blkio && !is_v1_only();
    if !is {
        skipped(test, "blkio is a hierarchy of cgroup v1 here");
    }
    is
}

/// A file system on a loop device, mounted. Unmounted on drop.
struct FileSystem {
    folder: Folder,
    device: LoopDevice,
}

impl FileSystem {
    /// Without a journal, whose writes are nobody's, nor inode tables that the kernel still has to zero: 4 MiB of
    /// nobody's, as fast as it comes to it.
    fn new() -> Self {
        let device = LoopDevice::new(64 * MIB).unwrap();
        let folder = Folder::new();
        let mut make = Command::new("mke2fs");
        make.args(["-q", "-t", "ext4", "-O", "^has_journal"])
            .args(["-E", "lazy_itable_init=0"])
            .arg(device.path());
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "ext4"])
            .arg(device.path())
            .arg(folder.path());
        for command in [make, mount] {
            let called = format!("{command:?}");
            let output = output(command);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{called}: {stderr}");
        }
        Self { folder, device }
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

#[test]
fn what_is_written_back_belongs_to_the_container_whose_file_it_is() {
    const TEST: &str = "what_is_written_back_belongs_to_the_container_whose_file_it_is";
    turn!("what_is_written_back_belongs_to_the_container_whose_file_it_is");
    if !io_is_in_v2(TEST) {
        return;
    }
    let node = Node::new();
    let residents = residents(&node);
    let files = FileSystem::new();
    let agent = node.agent("--probes disk");
    // Three of them write, each its own number of MiB, and end.
    let sizes = [(0, 8), (4, 3), (5, 5)];
    for (resident, mib) in sizes {
        let file = files.folder.path().join(resident.to_string());
        let args = format!("write --file {} --count {}", file.display(), mib * 256);
        residents[resident].seat.run(&args);
    }
    // Not by their processes, and not by this one either: it only asks for it.
    let root = std::fs::File::open(files.folder.path()).unwrap();
    rustix::fs::syncfs(&root).unwrap();
    let scrape = agent.scrape();
    let name = files.device.name();
    let written = by_owner(&scrape, BYTES, &[("device", name), ("operation", "write")]);
    println!("{written:?}");
    for (resident, mib) in sizes {
        let bytes = written[&residents[resident].owner];
        // And a few blocks of the file system's own, of who first came to need them.
        let most = mib * MIB + 512 * 1024;
        assert!((mib * MIB..most).contains(&bytes), "{resident}: {bytes}");
    }
    // The file system's journal and tables, some 1 MiB: less than any of the files.
    let nobodys = written.get(&Owner::new("", "", "")).copied();
    assert!(nobodys.unwrap_or_default() < 3 * MIB, "{nobodys:?}");
    let verdict = [("probe", "disk"), ("verdict", "attached")];
    assert_eq!(scrape.value("sentry_probe_up", &verdict), 1.0);
    agent.stop();
}

#[test]
fn without_the_io_controller_all_io_is_the_roots() {
    const TEST: &str = "without_the_io_controller_all_io_is_the_roots";
    turn!("without_the_io_controller_all_io_is_the_roots");
    if !io_is_in_v2(TEST) {
        return;
    }
    let control = roots().v2.join("cgroup.subtree_control");
    let controllers = std::fs::read_to_string(control).unwrap();
    if controllers.split_whitespace().any(|name| name == "io") {
        return skipped(TEST, "this host needs its io controller");
    }
    let agent = Agent::start("--probes disk");
    let verdict = [
        ("probe", "disk"),
        ("verdict", "degraded"),
        ("reason", "io_controller_off"),
    ];
    assert_eq!(agent.scrape().value("sentry_probe_up", &verdict), 1.0);
    let device = LoopDevice::new(MIB).unwrap();
    let name = device.name();
    let cgroup = disk_cgroup("io-off");
    let file = device.path().display();
    let args = format!("write --file {file} --direct --count 25");
    crate::load::run(&args, &[&cgroup]);
    let labels = [("device", name), ("operation", "write"), ("cgroup", "/")];
    assert_eq!(agent.scrape().value(BYTES, &labels), 102_400.0);
    agent.stop();
}
