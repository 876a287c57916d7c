//! The agent in the home that its manifest gives it: namespaces, a root, a user and mounts of its own, a service account,
//! and around it a node whose containers are older and newer than the agent. Of what a runtime does, only its seccomp
//! filter is missing.

use crate::agent::{Agent, End, get};
use crate::bystander::undisturbed;
use crate::exposition::Exposition;
use crate::host::{Folder, output, turn, wait_for};
use crate::image::all_but;
use crate::kubernetes::{CONNECTS, IO, Owner, by_owner};
use crate::load::{self, Server, assert_all};
use crate::node::{NAME, Node, Seat, id, slice, uid, wait_until_up};
use crate::privileges::{
    BOTH, CUDA, assert_left, field, mask, said_to_be_kept, with_file_capabilities,
};
use rustix::process::{Pid, Signal, kill_process};
use sentry_bench::kubernetes::{Options, Pod};
use sentry_bench::sandbox::{LoopDevice, Netns};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MANIFEST: &str = include_str!("../../../deploy/deploy-sentry.yaml");

/// Where the kubelet mounts the service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What the API server asks for.
const TOKEN: &str = "of-the-service-account";

/// The number of the agent's own pod and container, and the first of the others'. Other tests have lower ones, and whoever
/// tests at the same time has others.
fn own_number() -> u64 {
    u64::from(std::process::id()) << 16
}

/// The capabilities that are the image's: those that the program has there.
const OF_THE_FILE: u64 = BOTH | CUDA;

/// The pod of the manifest's `DaemonSet`.
struct Manifest(Value);

/// A folder of the host in the pod.
struct Mount {
    host: String,
    pod: String,
    /// As mount(8) has it.
    propagation: &'static str,
}

impl Manifest {
    fn read() -> Self {
        let documents: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
        let mut sets = documents
            .into_iter()
            .filter(|document| document["kind"] == "DaemonSet");
        let pod = Self(sets.next().unwrap()["spec"]["template"]["spec"].take());
        assert!(sets.next().is_none());
        // All that the home below takes for granted.
        assert_eq!(pod.0["enableServiceLinks"], false);
        assert_eq!(pod.0["automountServiceAccountToken"], true);
        assert_eq!(pod.0["containers"].as_array().unwrap().len(), 1);
        for shared in ["hostPID", "hostNetwork", "hostIPC", "initContainers"] {
            assert_eq!(pod.0[shared], Value::Null, "{shared}");
        }
        let context = &pod.container()["securityContext"];
        for (key, expected) in [
            ("allowPrivilegeEscalation", true),
            ("privileged", false),
            ("readOnlyRootFilesystem", true),
        ] {
            assert_eq!(context[key], expected, "{key}");
        }
        let drop: Vec<&str> = texts(&context["capabilities"]["drop"]).collect();
        assert_eq!(drop, ["ALL"]);
        for overridden in ["command", "args"] {
            assert_eq!(pod.container()[overridden], Value::Null, "{overridden}");
        }
        pod
    }

    fn container(&self) -> &Value {
        &self.0["containers"][0]
    }

    /// The variables, with what the node says of itself.
    fn environment(&self) -> BTreeMap<String, String> {
        let variables = self.container()["env"].as_array().unwrap().iter();
        let pairs = variables.map(|variable| {
            let name = text(&variable["name"]).to_owned();
            let value = match variable["value"].as_str() {
                Some(value) => value,
                None => match text(&variable["valueFrom"]["fieldRef"]["fieldPath"]) {
                    "spec.nodeName" => NAME,
                    other => panic!("{name} is of {other}"),
                },
            };
            (name, value.to_owned())
        });
        pairs.collect()
    }

    /// The capabilities within bounds.
    fn added(&self) -> u64 {
        let added = texts(&self.container()["securityContext"]["capabilities"]["add"]);
        let names: Vec<String> = added.map(|name| format!("CAP_{name}")).collect();
        mask(&names.join(" "))
    }

    /// The user's or group's number.
    fn run_as(&self, which: &str) -> u64 {
        self.0["securityContext"][which].as_u64().unwrap()
    }

    fn mounts(&self) -> Vec<Mount> {
        let volumes = self.0["volumes"].as_array().unwrap();
        let mounts = self.container()["volumeMounts"].as_array().unwrap().iter();
        let mounts = mounts.map(|mount| {
            assert_eq!(mount["readOnly"], true, "{mount}");
            let mut named = volumes.iter().filter(|of| of["name"] == mount["name"]);
            Mount {
                host: text(&named.next().unwrap()["hostPath"]["path"]).to_owned(),
                pod: text(&mount["mountPath"]).to_owned(),
                propagation: match mount["mountPropagation"].as_str() {
                    None => "rprivate",
                    Some("HostToContainer") => "rslave",
                    Some(other) => panic!("{other} in {mount}"),
                },
            }
        });
        mounts.collect()
    }

    /// The port that a probe of the kubelet asks, and the path.
    fn probe(&self, name: &str) -> (u16, &str) {
        let get = &self.container()[name]["httpGet"];
        let ports = self.container()["ports"].as_array().unwrap();
        let mut named = ports.iter().filter(|port| port["name"] == get["port"]);
        let port = named.next().unwrap()["containerPort"].as_u64().unwrap();
        (port.try_into().unwrap(), text(&get["path"]))
    }

    fn memory_limit_bytes(&self) -> u64 {
        let limit = text(&self.container()["resources"]["limits"]["memory"]);
        let mebibytes: u64 = limit.strip_suffix("Mi").unwrap().parse().unwrap();
        mebibytes << 20
    }

    /// How long the agent may take to end.
    fn grace(&self) -> Duration {
        Duration::from_secs(self.0["terminationGracePeriodSeconds"].as_u64().unwrap())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().unwrap().iter().map(text)
}

/// A pod's network namespace, and the pair of interfaces between it and the host.
struct Network {
    netns: Netns,
    /// The host's end.
    link: String,
    host: Ipv4Addr,
    pod: Ipv4Addr,
}

impl Network {
    fn new() -> Self {
        let process = std::process::id();
        // Networks for tests (RFC 2544), another one for whoever tests at the same time.
        let first = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + process % (1 << 15) * 4;
        let network = Self {
            netns: Netns::new("home").unwrap(),
            link: format!("sentry{process}"),
            host: (first + 1).into(),
            pod: (first + 2).into(),
        };
        let Self {
            netns, link, host, ..
        } = &network;
        for args in [
            format!(
                "link add {link} type veth peer name eth0 netns {}",
                netns.name()
            ),
            format!("addr add {host}/30 dev {link}"),
            format!("link set {link} up"),
        ] {
            let mut command = Command::new("ip");
            command.args(args.split(' '));
            let done = output(command);
            assert!(done.status.success(), "{args}: {done:?}");
        }
        for args in [
            format!("addr add {}/30 dev eth0", network.pod),
            "link set eth0 up".to_owned(),
            format!("route add default via {host}"),
        ] {
            netns.ip(&args.split(' ').collect::<Vec<_>>()).unwrap();
        }
        network
    }
}

/// A node with room for the agent's pod.
struct Home {
    manifest: Manifest,
    node: Node,
    network: Network,
    /// The container's cgroup.
    seat: Seat,
    /// The container's root, where there is nothing but the program and places to mount at.
    root: Folder,
    account: Folder,
}

impl Home {
    fn new() -> Self {
        let manifest = Manifest::read();
        let network = Network::new();
        let node = Node::with(Options {
            address: network.host.into(),
            tls: true,
            token: Some(TOKEN.to_owned()),
            ..Options::default()
        });
        let account = Folder::new();
        for (file, text) in [
            ("token", TOKEN),
            ("ca.crt", node.api.authority().unwrap()),
            ("namespace", "sentry"),
        ] {
            fs::write(account.path().join(file), text).unwrap();
        }
        // In memory, where files can have capabilities, in a guest as well.
        let root = Folder::new_in(Path::new("/dev/shm"));
        assert!(with_file_capabilities(&root, OF_THE_FILE));
        let number = own_number();
        node.api.apply(
            &Pod::new(NAME, "sentry", "sentry-q5kz2", &uid(number))
                .owned_by("DaemonSet", "sentry")
                .with("sentry", &format!("containerd://{}", id(number))),
        );
        // The class of pods that ask for less than they may have.
        let seat = seat(&node, number);
        for folder in &seat.folders {
            let limit = folder.join("memory.max");
            if limit.exists() {
                fs::write(limit, manifest.memory_limit_bytes().to_string()).unwrap();
            }
        }
        Self {
            manifest,
            node,
            network,
            seat,
            root,
            account,
        }
    }

    /// Starts the container as a runtime does, with further variables.
    fn start(&self, further: &[(&str, &str)]) -> Agent {
        let script = self.script();
        let mut command = self.seat.enter();
        command
            .arg("nsenter")
            .arg(format!("--net=/run/netns/{}", self.network.netns.name()))
            .args("-- unshare --cgroup --ipc --uts --pid --fork --mount".split(' '))
            .args(["--propagation", "slave", "sh", "-euc", &script])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .envs(self.manifest.environment())
            .env("KUBERNETES_SERVICE_HOST", self.network.host.to_string())
            .env(
                "KUBERNETES_SERVICE_PORT",
                self.node.api.address().port().to_string(),
            )
            .envs(further.iter().copied());
        let agent = Agent::spawn_as(command);
        let parent = agent.pid();
        let inside = self.processes().into_iter().find(|pid| *pid != parent);
        let agent = agent.inside(inside.unwrap(), self.network.pod.into());
        wait_until_up(&agent);
        agent
    }

    /// What the first process of the container does before it becomes the agent.
    fn script(&self) -> String {
        let root = self.root.path().display();
        let place = |path: &str| fs::create_dir_all(format!("{root}{path}")).unwrap();
        let mut script = format!("mount --bind {root} {root}\n");
        place("/proc");
        place("/sys");
        let _ = writeln!(script, "mount -t proc proc {root}/proc");
        // What of it a runtime has be read alone, where this kernel has it.
        let _ = writeln!(
            script,
            "for name in bus fs irq sys sysrq-trigger; do\n\
             path={root}/proc/$name\n\
             [ -e $path ] || continue\n\
             mount --bind $path $path\n\
             mount -o remount,bind,ro $path\n\
             done"
        );
        let _ = writeln!(script, "mount -t sysfs -o ro sysfs {root}/sys");
        let _ = writeln!(
            script,
            "mount -t cgroup2 -o ro cgroup2 {root}/sys/fs/cgroup"
        );
        let mut mounts = self.mounts();
        mounts.push(Mount {
            host: self.account.path().display().to_string(),
            pod: SERVICE_ACCOUNT.to_owned(),
            propagation: "rprivate",
        });
        // A program that is linked dynamically needs what the image's does not.
        let libraries: &[&str] = if cfg!(target_feature = "crt-static") {
            &[]
        } else {
            &["/lib", "/lib64", "/usr/lib"]
        };
        for path in libraries.iter().filter(|path| Path::new(path).exists()) {
            mounts.push(Mount {
                host: (*path).to_owned(),
                pod: (*path).to_owned(),
                propagation: "rprivate",
            });
        }
        for Mount {
            host,
            pod,
            propagation,
        } in mounts
        {
            if !pod.starts_with("/sys/") {
                place(&pod);
            }
            let _ = writeln!(
                script,
                "mount --rbind {host} {root}{pod}\nmount --make-{propagation} {root}{pod}\n\
                 mount -o remount,bind,ro {root}{pod}"
            );
        }
        let (user, group) = (
            self.manifest.run_as("runAsUser"),
            self.manifest.run_as("runAsGroup"),
        );
        // The folder for what is in memory may be mounted so that files' capabilities do not count.
        let _ = writeln!(
            script,
            "mount -o remount,bind,ro,suid,exec {root}\n\
             exec capsh --chroot={root} --drop={} --gid={group} --groups={group} --uid={user} --shell=/sentry --",
            all_but(self.manifest.added())
        );
        script
    }

    /// The manifest's mounts. The kernel's file systems are the host's, all else is what the node's folder stands for.
    fn mounts(&self) -> Vec<Mount> {
        let mut mounts = self.manifest.mounts();
        for mount in &mut mounts {
            if !mount.host.starts_with("/sys/") {
                let host = self.node.rootfs().join(mount.host.trim_start_matches('/'));
                // Runtimes make what is not there.
                fs::create_dir_all(&host).unwrap();
                mount.host = host.display().to_string();
            }
        }
        mounts
    }

    fn processes(&self) -> Vec<u32> {
        let members = fs::read_to_string(self.seat.folders[0].join("cgroup.procs"));
        let members = members.unwrap_or_default();
        members.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// What the kubelet hears of a probe of the manifest.
    fn probed(&self, name: &str) -> u16 {
        let (port, path) = self.manifest.probe(name);
        let address = SocketAddr::new(IpAddr::V4(self.network.pod), port);
        get(address, path, &[]).status
    }

    /// Asserts that the agent is where and who the manifest has it be.
    fn assert_contained(&self, agent: &Agent) {
        let own = PathBuf::from(format!("/proc/{}", agent.pid()));
        for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
            let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
            assert_ne!(of(&own), of(Path::new("/proc/self")));
        }
        let status = fs::read_to_string(own.join("status")).unwrap();
        assert_eq!(field(&status, "NSpid:"), format!("{}\t1", agent.pid()));
        let (user, group) = (
            self.manifest.run_as("runAsUser"),
            self.manifest.run_as("runAsGroup"),
        );
        assert_eq!(field(&status, "Uid:"), vec![user.to_string(); 4].join("\t"));
        assert_eq!(
            field(&status, "Gid:"),
            vec![group.to_string(); 4].join("\t")
        );
        assert_eq!(field(&status, "Groups:"), group.to_string());
        // As it sees them.
        let mountinfo = fs::read_to_string(own.join("mountinfo")).unwrap();
        let options = |path: &str| {
            let mut lines = mountinfo
                .lines()
                .map(|line| line.split(' ').collect::<Vec<_>>());
            let found = lines.find(|fields| fields[4] == path);
            found.unwrap_or_else(|| panic!("{path} is not among {mountinfo}"))[5].to_owned()
        };
        let mounts = self.manifest.mounts();
        let fixed = ["/", "/sys", "/sys/fs/cgroup", SERVICE_ACCOUNT];
        for path in mounts.iter().map(|mount| &*mount.pod).chain(fixed) {
            let options = options(path);
            assert!(options.split(',').any(|option| option == "ro"), "{path}");
        }
    }

    /// Asserts that probes are answered, and that the agent measures all with the privileges that it is given.
    fn assert_at_work(&self, agent: &Agent) {
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(self.probed(probe), 200, "{probe}");
        }
        let scrape = agent.scrape();
        for probe in ["tcp", "disk"] {
            let labels = [
                ("probe", probe),
                ("hook", "tp_btf"),
                ("verdict", "attached"),
            ];
            let up = scrape.value("sentry_probe_up", &labels);
            assert_eq!(up, 1.0, "{}", agent.log());
        }
        // It is one of the pods: it asks the API server, and is asked for this. What it did before it knew of them is
        // named a little later.
        for role in ["client", "server"] {
            let own = [
                ("namespace", "sentry"),
                ("pod", "sentry-q5kz2"),
                ("container", "sentry"),
                ("role", role),
            ];
            wait_for("name of its own", Duration::from_secs(10), || {
                (agent.scrape().count(CONNECTS, &own) > 0).then_some(())
            });
        }
        let added = self.manifest.added();
        assert_eq!(mask(&said_to_be_kept(agent)), added, "{}", agent.log());
        assert_left(agent, added, added);
    }

    /// Ends the agent as the kubelet does, in time, and asserts that it had these warnings alone to say, and that nothing
    /// is left on the host.
    fn end(self, agent: Agent, warnings: &[&str]) {
        let End {
            status,
            stdout,
            stderr,
            took,
        } = agent.end(Signal::TERM);
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert_eq!(stdout, "");
        assert_eq!(said(&stderr, "WARN"), warnings, "{stderr}");
        assert_eq!(said(&stderr, "ERROR"), [""; 0], "{stderr}");
        assert!(took < self.manifest.grace(), "{took:?}");
        self.leave();
    }

    fn leave(self) {
        let folders = self.seat.folders.clone();
        let (link, netns) = (
            self.network.link.clone(),
            self.network.netns.name().to_owned(),
        );
        let paths = [self.root.path().to_owned(), self.node.rootfs()];
        drop(self);
        for folder in folders {
            assert!(!folder.exists(), "{}", folder.display());
        }
        assert!(!Path::new("/run/netns").join(netns).exists());
        // The kernel takes a namespace down in the background.
        wait_for("end of a network", Duration::from_secs(10), || {
            (!Path::new("/sys/class/net").join(&link).exists()).then_some(())
        });
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for path in paths {
            assert!(!path.exists(), "{}", path.display());
            assert!(!mounts.contains(path.to_str().unwrap()), "{mounts}");
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Those of a test that failed; what was started may be but the parent of the agent.
        for pid in self.processes() {
            let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        }
    }
}

/// The cgroup of a container, each of its own pod.
fn seat(node: &Node, number: u64) -> Seat {
    let scope = format!("cri-containerd-{}.scope", id(number));
    node.cgroup(&format!("{}/{scope}", slice("burstable", number)))
}

/// A process in a container that is there and does nothing until it is told to.
struct Waiting(Child);

impl Waiting {
    fn start(seat: &Seat, args: &str) -> Self {
        let script = "read -r line && exec \"$@\"";
        let mut command = seat.enter();
        command.args(["sh", "-euc", script, "sh"]);
        command.arg(load::program()).args(args.split_whitespace());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(piped.spawn().unwrap())
    }

    /// Its report, now that it may go on.
    fn go_on(mut self) -> Value {
        let mut stdin = self.0.stdin.take().unwrap();
        stdin.write_all(b"\n").unwrap();
        let output = self.0.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// What is said of the pods of these tests and of the container without one, which nobody else's have the names of.
fn named(scrape: &Exposition, metric: &str, further: &[(&str, &str)]) -> BTreeMap<Owner, u64> {
    let mut found = by_owner(scrape, metric, further);
    found.retain(|owner, _| owner.namespace == "home" || owner.container == "home-registry");
    found
}

/// The messages of the log of this level.
fn said(log: &str, level: &str) -> Vec<String> {
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["level"] == level)
        .map(|line| text(&line["message"]).to_owned())
        .collect()
}

/// Asserts that reads of a disk belong to the containers that do them, each another number of them.
fn assert_reads(agent: &Agent, readers: &[(&Seat, Owner)]) {
    let device = LoopDevice::new(1 << 20).unwrap();
    let name = device.name();
    undisturbed(&device, || {
        let reads = || {
            let labels = [("device", name), ("operation", "read")];
            named(&agent.scrape(), IO, &labels)
        };
        let before = reads();
        let mut expected = BTreeMap::new();
        for ((seat, owner), count) in readers.iter().zip(11..) {
            let file = device.path().display();
            seat.run(&format!("read --file {file} --direct --count {count}"));
            expected.insert(owner.clone(), count);
        }
        let mut found = reads();
        for (owner, count) in before {
            *found.get_mut(&owner).unwrap() -= count;
        }
        (found, expected)
    });
}

#[test]
fn containers_older_and_newer_are_named() {
    turn!("containers_older_and_newer_are_named");
    let home = Home::new();
    let node = &home.node;
    let pod = |name: &str, number: u64| Pod::new(NAME, "home", name, &uid(number));
    let [web, db, batch, registry, newer, short] =
        [1, 2, 3, 4, 5, 6].map(|number| own_number() + number);

    // Older than the agent: two that the API server knows, two by what their runtimes wrote alone.
    node.api
        .apply(&pod("web-0", web).with("app", &format!("containerd://{}", id(web))));
    node.api
        .apply(&pod("db-0", db).with("db", &format!("containerd://{}", id(db))));
    node.containerd_state(&id(batch), &pod("batch", batch), "main");
    node.docker_state(&id(registry), "home-registry");
    let seats = [web, db, batch].map(|number| seat(node, number));
    let registry_seat = node.cgroup(&format!("/system.slice/docker-{}.scope", id(registry)));
    let listener = Server::start(seats[1].command("listen"));
    let connect = |count: u64| {
        let port = listener.port();
        format!("connect --to 127.0.0.1:{port} --count {count}")
    };
    let older = [(&seats[0], 3), (&seats[2], 4), (&registry_seat, 5)]
        .map(|(seat, count)| (Waiting::start(seat, &connect(count)), count));

    let agent = home.start(&[]);
    home.assert_contained(&agent);
    home.assert_at_work(&agent);

    for (waiting, count) in older {
        assert_all(&waiting.go_on(), "connected", count);
    }
    // Newer: one that the API server knows, and one that is gone before anybody asks.
    let known = pod("newer", newer).with("new", &format!("containerd://{}", id(newer)));
    node.announce(&agent, &known);
    let newer_seat = seat(node, newer);
    assert_all(&newer_seat.run(&connect(6)), "connected", 6);
    node.containerd_state(&id(short), &pod("short", short), "once");
    let start = Instant::now();
    let short_seat = seat(node, short);
    assert_all(&short_seat.run(&connect(1)), "connected", 1);
    std::thread::sleep(Duration::from_millis(50).saturating_sub(start.elapsed()));
    node.remove(&short_seat);
    node.forget_state(&id(short));

    let owner = |pod: &str, container: &str| Owner::new("home", pod, container);
    let of_registry = Owner::new("", "", "home-registry");
    let scrape = agent.scrape();
    let clients = [
        (owner("web-0", "app"), 3),
        (owner("batch", "main"), 4),
        (of_registry.clone(), 5),
        (owner("newer", "new"), 6),
        (owner("short", "once"), 1),
    ];
    let servers = [(owner("db-0", "db"), 3 + 4 + 5 + 6 + 1)];
    assert_eq!(
        named(&scrape, CONNECTS, &[("role", "client")]),
        clients.into()
    );
    assert_eq!(
        named(&scrape, CONNECTS, &[("role", "server")]),
        servers.into()
    );
    let [web, db, batch] = &seats;
    assert_reads(
        &agent,
        &[
            (web, owner("web-0", "app")),
            (db, owner("db-0", "db")),
            (batch, owner("batch", "main")),
            (&registry_seat, of_registry),
            (&newer_seat, owner("newer", "new")),
        ],
    );
    drop(listener);

    home.end(agent, &[]);
}

#[test]
fn what_service_links_would_set_is_only_warned_of() {
    turn!("what_service_links_would_set_is_only_warned_of");
    let home = Home::new();
    // A pod of a namespace with a Service named `sentry` and no `enableServiceLinks: false`.
    let agent = home.start(&[
        ("SENTRY_PORT", "tcp://10.96.0.7:9763"),
        ("SENTRY_PORT_9763_TCP", "tcp://10.96.0.7:9763"),
        ("SENTRY_SERVICE_HOST", "10.96.0.7"),
        ("SENTRY_SERVICE_PORT", "9763"),
    ]);
    assert_eq!(home.probed("readinessProbe"), 200);
    home.end(
        agent,
        &[
            "environment: ignored, since these are not settings: SENTRY_PORT, SENTRY_PORT_9763_TCP, SENTRY_SERVICE_HOST, SENTRY_SERVICE_PORT",
        ],
    );
}
