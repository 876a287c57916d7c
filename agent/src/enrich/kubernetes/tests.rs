//! The watch against an API server that speaks real HTTP, and misbehaves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sentry_bench::kubernetes::{ApiServer, Container, Cut, Fault, Options as ServerOptions, Pod};

use super::{Error, Options, PodNames, Pods, Watch, WatchStats, client::Access, follow::Timing};

const NODE: &str = "node-1";
const RETENTION: Duration = Duration::from_secs(120);

const QUICK: Timing = Timing {
    answer: Duration::from_secs(10),
    silence: Duration::from_secs(60),
    first_wait: Duration::from_millis(10),
    longest_wait: Duration::from_millis(100),
    steady: Duration::from_secs(10),
};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sentry-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A watch by kubeconfig.
fn watch(server: &ApiServer, folder: &Folder, retention: Duration, timing: Timing) -> Arc<Watch> {
    let kubeconfig = folder.write("kubeconfig", &server.kubeconfig(""));
    let labels = vec!["app".to_owned(), "team".to_owned()];
    let pods = Pods::new(labels, false, retention);
    super::start_with(
        NODE.to_owned(),
        Access::Kubeconfig(kubeconfig),
        pods,
        retention,
        timing,
    )
    .unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn until_up(watch: &Watch) {
    until("the watch is up", || watch.stats().up);
}

fn server() -> ApiServer {
    ApiServer::start(ServerOptions::default()).unwrap()
}

fn web(name: &str, id: &str) -> Pod {
    Pod::new(NODE, "shop", name, &format!("uid-{name}"))
        .with("nginx", &format!("containerd://{id}"))
}

/// namespace/pod/container
fn found(watch: &Watch, id: &str) -> Option<String> {
    let (pod, container) = watch.pods().by_container(id)?;
    Some(format!("{}/{}/{container}", pod.namespace, pod.name))
}

fn names(watch: &Watch, uid: &str) -> Arc<PodNames> {
    watch.pods().by_uid(uid).unwrap()
}

/// (reason, count) of those that are not 0.
fn errors(watch: &Watch) -> Vec<(&'static str, u64)> {
    let stats = watch.stats();
    let counted = super::Reason::ALL.iter().zip(stats.errors);
    counted
        .map(|(reason, count)| (reason.code(), count))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn lists(server: &ApiServer) -> usize {
    let is_list = |target: &&String| !target.contains("watch=true");
    server.requests().iter().filter(is_list).count()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

#[test]
fn pods_are_listed_once_and_then_followed() {
    let server = server();
    server.apply(
        &web("web-7d4b9c6f5-x", "c1")
            .labelled("app", "web")
            .labelled("pod-template-hash", "7d4b9c6f5")
            .owned_by("ReplicaSet", "web-7d4b9c6f5"),
    );
    server.apply(&Pod::new("node-2", "shop", "elsewhere", "uid-2").with("x", "containerd://c2"));
    server.apply(
        &Pod::new(NODE, "kube-system", "etcd-node-1", "uid-mirror")
            .with("etcd", "containerd://c3")
            .mirror_of("0123456789abcdef0123456789abcdef"),
    );
    let folder = Folder::new("followed");
    let before = now();
    let watch = watch(&server, &folder, RETENTION, QUICK);
    until_up(&watch);

    assert_eq!(found(&watch, "c1").unwrap(), "shop/web-7d4b9c6f5-x/nginx");
    assert_eq!(found(&watch, "c2"), None);
    assert_eq!(found(&watch, "c3").unwrap(), "kube-system/etcd-node-1/etcd");
    let web_names = names(&watch, "uid-web-7d4b9c6f5-x");
    assert_eq!(web_names.labels, ["web", ""]);
    assert_eq!(
        (
            web_names.workload.kind.as_str(),
            web_names.workload.name.as_str()
        ),
        ("Deployment", "web")
    );
    let etcd = names(&watch, "0123456789abcdef0123456789abcdef");
    assert_eq!(
        (&*etcd.uid, etcd.workload.kind.as_str()),
        ("uid-mirror", "Pod")
    );
    let stats = watch.stats();
    assert_eq!(
        stats,
        WatchStats {
            up: true,
            last_sync: stats.last_sync,
            pods: 2,
            errors: [0; 6]
        }
    );
    assert!((before..=now()).contains(&stats.last_sync.unwrap()));
    assert_eq!(
        server.requests(),
        [
            "/api/v1/pods?fieldSelector=spec.nodeName=node-1&resourceVersion=0",
            "/api/v1/pods?watch=true&timeoutSeconds=290&fieldSelector=spec.nodeName=node-1\
             &allowWatchBookmarks=true&resourceVersion=1003",
        ]
    );

    // Init, sidecar and ephemeral containers, and a label changed.
    let version = watch.pods().version();
    let mut pod = web("job-1", "d1")
        .labelled("team", "red")
        .owned_by("Job", "job-29381760");
    pod.init_containers = vec![
        Container {
            ended: true,
            ..Container::running("migrate", "containerd://d2")
        },
        Container {
            sidecar: true,
            ..Container::running("proxy", "containerd://d3")
        },
    ];
    pod.ephemeral_containers = vec![Container::running("debug", "containerd://d4")];
    server.apply(&pod);
    until("the pod is known", || found(&watch, "d1").is_some());
    for (id, name) in [
        ("d1", "nginx"),
        ("d2", "migrate"),
        ("d3", "proxy"),
        ("d4", "debug"),
    ] {
        assert_eq!(found(&watch, id).unwrap(), format!("shop/job-1/{name}"));
    }
    assert_eq!(names(&watch, "uid-job-1").workload.kind, "CronJob");
    assert_eq!(watch.pods().version(), version + 1);

    // Heartbeats are no news; the relabelling after them is.
    for heartbeat in 1..=20 {
        pod.heartbeat = heartbeat;
        server.apply(&pod);
    }
    let pod = pod.labelled("team", "blue");
    server.apply(&pod);
    until("the new label", || {
        names(&watch, "uid-job-1").labels[1] == "blue"
    });
    assert_eq!(watch.pods().version(), version + 2);
    assert_eq!(found(&watch, "d3").unwrap(), "shop/job-1/proxy");

    assert_eq!((watch.stats().pods, errors(&watch)), (3, vec![]));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn containers_that_restarted_and_pods_that_are_deleted_stay_for_a_while() {
    let server = server();
    let mut pod = web("crash", "r1");
    server.apply(&pod);
    let folder = Folder::new("retention");
    let retention = Duration::from_secs(2);
    let watch = watch(&server, &folder, retention, QUICK);
    until_up(&watch);
    let restarted = Instant::now();
    for (id, before) in [("r2", "r1"), ("r3", "r2")] {
        pod.containers[0].id = format!("containerd://{id}");
        pod.containers[0].previous_id = Some(format!("containerd://{before}"));
        server.apply(&pod);
    }
    until("the second restart", || found(&watch, "r3").is_some());
    for id in ["r1", "r2", "r3"] {
        assert_eq!(found(&watch, id).unwrap(), "shop/crash/nginx", "{id}");
    }
    until("the first id is forgotten", || {
        found(&watch, "r1").is_none()
    });
    assert!(restarted.elapsed() >= retention);
    assert_eq!(found(&watch, "r2").unwrap(), "shop/crash/nginx");

    let deleted = Instant::now();
    server.delete(&pod);
    until("the deletion", || watch.stats().pods == 0);
    assert_eq!(found(&watch, "r3").unwrap(), "shop/crash/nginx");
    assert_eq!(names(&watch, "uid-crash").name, "crash");
    until("the pod is forgotten", || found(&watch, "r3").is_none());
    assert!(deleted.elapsed() >= retention);
    assert!(watch.pods().by_uid("uid-crash").is_none());
    assert!(found(&watch, "r2").is_none());
}

#[test]
fn a_watch_that_breaks_goes_on_where_it_was() {
    let server = server();
    server.apply(&web("a", "c1"));
    let folder = Folder::new("breaks");
    let watch = watch(&server, &folder, RETENTION, QUICK);
    until_up(&watch);
    // The bookmark is of a change elsewhere.
    server.apply(&Pod::new("node-2", "shop", "other", "uid-other"));
    let confirmed = watch.stats().last_sync;
    thread::sleep(Duration::from_millis(1100));
    server.bookmark();
    until("the bookmark", || watch.stats().last_sync > confirmed);
    server.cut_watches(Cut::MidLine);
    until("another watch", || server.requests().len() == 3);
    server.apply(&web("b", "c2"));
    until("the change", || found(&watch, "c2").is_some());
    assert!(
        server.requests()[2].ends_with("&resourceVersion=1002"),
        "{:?}",
        server.requests()
    );
    assert_eq!(errors(&watch), [("unreachable", 1)]);
    assert!(watch.stats().up);

    // One that ends in its time is no error, and never down.
    thread::sleep(Duration::from_millis(1100));
    server.cut_watches(Cut::End);
    until("the third watch", || server.requests().len() == 4);
    assert!(
        server.requests()[3].ends_with("&resourceVersion=1003"),
        "{:?}",
        server.requests()
    );
    until_up(&watch);
    assert_eq!(errors(&watch), [("unreachable", 1)]);
    assert_eq!(lists(&server), 1);
}

#[test]
fn a_version_that_is_gone_is_listed_anew() {
    let server = server();
    let (a, b) = (web("a", "c1"), web("b", "c2"));
    server.apply(&a);
    server.apply(&b);
    let folder = Folder::new("gone");
    let watch = watch(&server, &folder, RETENTION, QUICK);
    until_up(&watch);
    // In the midst of a watch.
    server.cut_watches(Cut::Expired);
    until("the second list", || lists(&server) == 2);
    until_up(&watch);
    assert_eq!(errors(&watch), [("expired", 1)]);
    // When it is opened again, and something was missed.
    server.set_fault(Some(Fault::Hang));
    server.cut_watches(Cut::MidLine);
    until("the third watch is asked for", || {
        server.requests().len() == 5
    });
    server.delete(&a);
    server.apply(&web("c", "c3"));
    server.compact();
    server.set_fault(None);
    until("the third list", || found(&watch, "c3").is_some());
    until_up(&watch);
    assert_eq!(errors(&watch), [("unreachable", 1), ("expired", 2)]);
    assert_eq!(lists(&server), 3);
    assert_eq!(watch.stats().pods, 2);
    // The deleted pod is known still.
    assert_eq!(found(&watch, "c1").unwrap(), "shop/a/nginx");
}

#[test]
fn an_api_server_that_refuses_is_asked_again() {
    let mut options = ServerOptions {
        token: Some("t1".to_owned()),
        ..ServerOptions::default()
    };
    options.page = 1;
    let server = ApiServer::start(options).unwrap();
    server.apply(&web("a", "c1"));
    server.apply(&web("b", "c2"));
    let folder = Folder::new("refuses");
    let mut expected = Vec::new();
    server.set_fault(Some(Fault::Answer(403)));
    let watch = watch(&server, &folder, RETENTION, QUICK);
    let count = |code: &str| {
        errors(&watch)
            .iter()
            .find(|(c, _)| *c == code)
            .map_or(0, |e| e.1)
    };
    for (code, reason) in [
        (403, "forbidden"),
        (500, "other"),
        (503, "other"),
        (410, "expired"),
        (504, "timeout"),
    ] {
        let before = count(reason);
        server.set_fault(Some(Fault::Answer(code)));
        until(reason, || count(reason) >= before + 2);
        if !expected.contains(&reason) {
            expected.push(reason);
        }
    }
    // Rights that were given later, but now for another token.
    server.set_token("t2");
    server.set_fault(None);
    until("unauthorized", || count("unauthorized") >= 2);
    expected.push("unauthorized");
    let stats = watch.stats();
    assert_eq!((stats.up, stats.last_sync, stats.pods), (false, None, 0));
    folder.write("kubeconfig", &server.kubeconfig(""));
    until_up(&watch);
    assert_eq!(watch.stats().pods, 2);
    assert_eq!(found(&watch, "c2").unwrap(), "shop/b/nginx");
    let requests = server.requests();
    let page = "/api/v1/pods?fieldSelector=spec.nodeName=node-1&continue=shop/a";
    assert_eq!(requests[requests.len() - 2], page);
    let mut reasons: Vec<_> = errors(&watch)
        .into_iter()
        .map(|(reason, _)| reason)
        .collect();
    reasons.sort_unstable();
    expected.sort_unstable();
    assert_eq!(reasons, expected);
}

#[test]
fn an_api_server_that_goes_away_is_caught_up_with() {
    let mut server = server();
    let a = web("a", "c1");
    server.apply(&a);
    let folder = Folder::new("away");
    let watch = watch(&server, &folder, RETENTION, QUICK);
    until_up(&watch);
    let version = watch.pods().version();
    server.stop();
    until("the watch is down", || !watch.stats().up);
    server.delete(&a);
    server.apply(&web("b", "c2").labelled("app", "late"));
    thread::sleep(Duration::from_secs(2));
    let stats = watch.stats();
    assert_eq!((stats.up, stats.pods), (false, 1));
    assert_eq!(found(&watch, "c1").unwrap(), "shop/a/nginx");
    assert_eq!(watch.pods().version(), version);
    let tries = stats.errors[0];
    // Waits of 10, 20, 40, 80 and then 100 ms, or half of that.
    assert!((5..=60).contains(&tries), "{tries} tries in 2 s");
    assert_eq!(stats.errors[1..], [0; 5]);
    server.resume().unwrap();
    until_up(&watch);
    assert_eq!(found(&watch, "c2").unwrap(), "shop/b/nginx");
    assert_eq!(names(&watch, "uid-b").labels, ["late", ""]);
    assert_eq!(watch.stats().pods, 1);
    assert_eq!(found(&watch, "c1").unwrap(), "shop/a/nginx");
    assert!(watch.pods().version() > version);
}

#[test]
fn an_api_server_that_is_slow_is_given_up_and_asked_again() {
    let server = server();
    server.apply(&web("a", "c1"));
    server.set_fault(Some(Fault::Hang));
    let folder = Folder::new("slow");
    let timing = Timing {
        answer: Duration::from_millis(300),
        ..QUICK
    };
    let watch = watch(&server, &folder, RETENTION, timing);
    until("two timeouts", || errors(&watch) >= vec![("timeout", 2)]);
    assert_eq!(found(&watch, "c1"), None);
    server.set_fault(None);
    until_up(&watch);
    assert_eq!(found(&watch, "c1").unwrap(), "shop/a/nginx");
    let timeouts = errors(&watch);
    // Silence is not slowness: the watch stays open for longer than an answer may take.
    thread::sleep(Duration::from_secs(1));
    assert_eq!(errors(&watch), timeouts);
    assert!(watch.stats().up);
    assert_eq!(server.watching(), 1);
}

#[test]
fn a_watch_that_is_silent_for_too_long_is_opened_again() {
    let server = server();
    server.apply(&web("a", "c1"));
    let folder = Folder::new("silent");
    let timing = Timing {
        silence: Duration::from_millis(500),
        ..QUICK
    };
    let watch = watch(&server, &folder, RETENTION, timing);
    until("a timeout", || !errors(&watch).is_empty());
    assert_eq!(errors(&watch), [("timeout", 1)]);
    until_up(&watch);
    assert_eq!(lists(&server), 1);
}

#[test]
fn a_service_account_is_all_that_a_pod_needs() {
    let tls = ServerOptions {
        tls: true,
        token: Some("t1".to_owned()),
        ..ServerOptions::default()
    };
    let server = ApiServer::start(tls.clone()).unwrap();
    server.apply(&web("a", "c1"));
    let folder = Folder::new("account");
    folder.write("token", "t1");
    let start = |folder: &Path, url: String| {
        let access = Access::ServiceAccount {
            folder: folder.to_owned(),
            url,
        };
        let pods = Pods::new(Vec::new(), false, RETENTION);
        super::start_with(NODE.to_owned(), access, pods, RETENTION, QUICK)
    };
    let refused = start(&folder.0, server.url()).unwrap_err();
    assert!(refused.is_bad_setting());
    assert_eq!(
        refused.to_string(),
        format!(
            "{}: No such file or directory (os error 2)",
            folder.0.join("ca.crt").display()
        )
    );
    folder.write("ca.crt", server.authority().unwrap());
    let watch = start(&folder.0, server.url()).unwrap();
    until_up(&watch);
    assert_eq!(found(&watch, "c1").unwrap(), "shop/a/nginx");
    assert_eq!(errors(&watch), []);

    // The kubelet has written a new token, and the old one is valid no more.
    folder.write("token", "t2");
    server.set_token("t2");
    server.cut_watches(Cut::MidLine);
    until("the break", || !errors(&watch).is_empty());
    server.apply(&web("b", "c2"));
    until("the change", || found(&watch, "c2").is_some());
    assert_eq!(errors(&watch), [("unreachable", 1)]);

    // One with another authority is not trusted.
    let other = ApiServer::start(tls).unwrap();
    let deceived = start(&folder.0, other.url()).unwrap();
    until("it is not trusted", || {
        errors(&deceived).iter().any(|e| *e >= ("unreachable", 2))
    });
    assert_eq!(other.requests(), [""; 0]);
    assert!(!deceived.stats().up);

    // By kubeconfig too, with the authority in a file.
    let kubeconfig = server.kubeconfig(&folder.0.join("ca.crt").display().to_string());
    let options = Options {
        keeps_all_labels: false,
        node: NODE.to_owned(),
        kubeconfig: Some(folder.write("kubeconfig", &kubeconfig)),
        labels: Vec::new(),
        retention: RETENTION,
    };
    let watch = super::start(options).unwrap();
    until_up(&watch);
    assert_eq!(found(&watch, "c2").unwrap(), "shop/b/nginx");
}

#[test]
fn what_cannot_work_is_said_in_one_line() {
    let folder = Folder::new("settings");
    let start = |node: &str, kubeconfig: PathBuf| {
        let options = Options {
            keeps_all_labels: false,
            node: node.to_owned(),
            kubeconfig: Some(kubeconfig),
            labels: Vec::new(),
            retention: RETENTION,
        };
        super::start(options).unwrap_err()
    };
    let missing = folder.0.join("missing");
    let no_server = "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         clusters: [{name: x, cluster: {}}]\nusers: []\ncontexts: [{name: x, context: {cluster: x}}]\n";
    let proxy = "apiVersion: v1\nkind: Config\ncurrent-context: x\nusers: []\n\
         clusters: [{name: x, cluster: {server: 'http://127.0.0.1:1', proxy-url: 'http://127.0.0.1:2'}}]\n\
         contexts: [{name: x, context: {cluster: x}}]\n";
    for (path, expected) in [
        (missing.clone(), "failed to read kubeconfig"),
        (
            folder.write("not-yaml", "a: [b\n c: }"),
            "failed to parse kubeconfig YAML",
        ),
        (
            folder.write("text", "hello"),
            "failed to parse kubeconfig YAML",
        ),
        (
            folder.write("no-server", no_server),
            "cluster url is missing on selected cluster",
        ),
        (folder.write("proxy", proxy), "proxy-url is not supported"),
    ] {
        let error = start(NODE, path.clone());
        assert!(error.is_bad_setting());
        let text = error.to_string();
        let start = format!("{}: {expected}", path.display());
        assert!(text.starts_with(&start), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
    for node in ["", "Node 1", "a,spec.nodeName=b"] {
        assert!(
            matches!(start(node, missing.clone()), Error::Node(_)),
            "{node}"
        );
    }
    // An API server that is away is none of these.
    let away = folder.write(
        "away",
        &proxy.replace(", proxy-url: 'http://127.0.0.1:2'", ""),
    );
    let options = Options {
        keeps_all_labels: false,
        node: NODE.to_owned(),
        kubeconfig: Some(away),
        labels: Vec::new(),
        retention: RETENTION,
    };
    let watch = super::start(options).unwrap();
    until("it was tried", || errors(&watch) == [("unreachable", 1)]);
}

const MANY: usize = 1000;

/// What a watch of many pods takes, measured in a process of its own by the next test.
#[test]
#[ignore = "run by a_thousand_pods_take_little"]
fn a_thousand_pods() {
    let Ok(kubeconfig) = std::env::var("WATCH_OF_MANY") else {
        return;
    };
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        (line("RssAnon:"), line("VmRSS:"), line("VmHWM:"))
    };
    let (anon, before, _) = resident();
    let started = Instant::now();
    let options = Options {
        keeps_all_labels: false,
        node: NODE.to_owned(),
        kubeconfig: Some(PathBuf::from(kubeconfig)),
        labels: vec!["app".to_owned(), "team".to_owned()],
        retention: RETENTION,
    };
    let watch = super::start(options).unwrap();
    until_up(&watch);
    let took = started.elapsed();
    assert_eq!(watch.stats().pods, MANY);
    assert_eq!(
        found(&watch, &format!("{:064x}", MANY - 1)).unwrap(),
        "shop/web-999/nginx"
    );
    let (anon_after, after, peak) = resident();
    println!(
        "measured {} {} {} {}",
        took.as_millis(),
        anon_after - anon,
        after - before,
        peak - before
    );
}

#[test]
fn a_thousand_pods_take_little() {
    let server = server();
    let mut bytes = 0;
    for i in 0..MANY {
        let mut pod = web(&format!("web-{i}"), &format!("{i:064x}"))
            .labelled("app", "web")
            .labelled("pod-template-hash", "7d4b9c6f5")
            .owned_by("ReplicaSet", "web-7d4b9c6f5");
        pod.uid = format!("5f9e0a52-1111-4222-8333-{i:012x}");
        pod.containers.push(Container::running(
            "proxy",
            &format!("containerd://{:064x}", i + 10_000),
        ));
        bytes += pod.json(0).len();
        server.apply(&pod);
    }
    let folder = Folder::new("thousand");
    let kubeconfig = folder.write("kubeconfig", &server.kubeconfig(""));
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "enrich::kubernetes::tests::a_thousand_pods",
            "--ignored",
            "--nocapture",
        ])
        .env("WATCH_OF_MANY", kubeconfig)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let measured = text
        .lines()
        .find_map(|line| line.split_once("measured "))
        .unwrap_or_else(|| {
            panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
        });
    let numbers: Vec<u64> = measured
        .1
        .split(' ')
        .map(|number| number.parse().unwrap())
        .collect();
    let [millis, anon_kib, kib, peak_kib] = numbers[..] else {
        panic!("{measured:?}");
    };
    println!(
        "{MANY} pods, {bytes} bytes of JSON: known after {millis} ms, memory grew by {anon_kib} KiB, with the program's own pages by {kib} KiB, \
         at its peak by {peak_kib} KiB"
    );
    assert!(anon_kib < 4 << 10, "{anon_kib} KiB for {MANY} pods");
}
