//! Kernels, and other packages, from Debian's suites, fetched and verified by apt itself.
//!
//! apt is given folders of its own, so nothing of the system changes. The mirror is the one that the system uses.

use crate::kernel::Kernel;
use crate::list::NEWEST;
use anyhow::{Context, anyhow, bail, ensure};
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

/// How long a suite's list of packages is taken as new.
const LIST_AGE: Duration = Duration::from_secs(20 * 3600);

/// Debian's keys, which the package debian-archive-keyring brings.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What ends the names of the packages wanted here: kernels for virtual machines, which have the drivers built in.
const FLAVOUR: &str = "cloud-amd64";

/// Names a mirror where the system's sources have none.
const MIRROR_VARIABLE: &str = "SENTRY_VM_MIRROR";

/// Where suites come from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    /// Of suites in general.
    main: String,
    /// Of those with security fixes.
    security: String,
}

impl Mirror {
    /// Chooses among the addresses of a system's sources, one a line.
    fn choose(addresses: &str) -> Option<Self> {
        let ending = |end: &str| addresses.lines().find(|line| line.ends_with(end));
        let main = ending("/debian/")?.to_owned();
        let security = ending("/debian-security/").map_or_else(
            || format!("{}debian-security/", main.trim_end_matches("debian/")),
            str::to_owned,
        );
        Some(Self { main, security })
    }

    fn find() -> anyhow::Result<Self> {
        if let Ok(named) = std::env::var(MIRROR_VARIABLE) {
            let named = format!("{}/", named.trim_end_matches('/'));
            return Self::choose(&named).with_context(|| {
                format!("{MIRROR_VARIABLE}: the address of a Debian mirror ends in /debian")
            });
        }
        let mut command = Command::new("apt-get");
        command.args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
        ]);
        let output = command.output().context("apt-get cannot be run")?;
        Self::choose(&String::from_utf8_lossy(&output.stdout)).with_context(|| {
            format!("this system's sources have no Debian mirror: {MIRROR_VARIABLE}=URL names one")
        })
    }

    fn of(&self, suite: &str) -> &str {
        if suite.ends_with("-security") {
            &self.security
        } else {
            &self.main
        }
    }

    /// A line of apt's without the mirror's names and numbers, which are nobody's business.
    fn hidden(&self, line: &str) -> String {
        let mut line = line.to_owned();
        // The longer one first, of which the other may be the beginning.
        for address in [&self.security, &self.main] {
            let host = address.split('/').nth(2).unwrap_or(address);
            line = line
                .replace(address.trim_end_matches('/'), "the mirror")
                .replace(host, "the mirror");
        }
        let is_number = |word: &str| {
            let word = word.trim_matches(|c: char| !c.is_ascii_hexdigit() && c != ':');
            word.contains(['.', ':']) && word.parse::<IpAddr>().is_ok()
        };
        let words = line.split_whitespace().filter(|word| !is_number(word));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// A package of a suite, as apt describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    depends: Vec<String>,
}

impl Package {
    /// Reads the first paragraph that `apt-cache show` prints.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = text.lines().take_while(|line| !line.is_empty());
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let depends = field("Depends").unwrap_or_default().split(',');
        // Of alternatives the first; without the version.
        let names = depends.filter_map(|entry| entry.split_whitespace().next());
        Some(Self {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            depends: names.map(str::to_owned).collect(),
        })
    }

    /// The kernel release that an image's package is of.
    fn release(&self) -> Option<&str> {
        self.name.strip_prefix("linux-image-")
    }

    /// The packages that this one's kernel is divided into, besides itself.
    fn parts(&self) -> impl Iterator<Item = &str> {
        let end = self.release().map(|release| format!("-{release}"));
        let names = self.depends.iter().map(String::as_str);
        names.filter(move |name| end.as_ref().is_some_and(|end| name.ends_with(end.as_str())))
    }
}

/// Where kernels are kept.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    mirror: Result<Mirror, String>,
    /// Keeps others out for as long as this value lives.
    _lock: File,
}

impl Cache {
    /// Opens the cache, beneath `SENTRY_VM_CACHE` or the user's folder for such things, waiting for others that use it.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn open() -> anyhow::Result<Self> {
        let folder = |name| std::env::var_os(name).map(PathBuf::from);
        let folder = folder("SENTRY_VM_CACHE")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("sentry/vm")))
            .or_else(|| Some(folder("HOME")?.join(".cache/sentry/vm")))
            .context("neither SENTRY_VM_CACHE nor HOME says where kernels may be kept")?;
        let lock = fs::create_dir_all(&folder).and_then(|()| File::create(folder.join("lock")));
        let lock = lock.with_context(|| folder.display().to_string())?;
        lock.lock()?;
        Ok(Self {
            folder: folder.canonicalize()?,
            mirror: Mirror::find().map_err(|error| format!("{error:#}")),
            _lock: lock,
        })
    }

    /// The newest kernel of a series that one of these suites has, else the one that is in the cache. What went wrong
    /// on the way is told to `say`.
    ///
    /// # Errors
    /// When neither suite nor cache has one.
    pub fn kernel(
        &self,
        series: &str,
        suites: &[String],
        say: &mut dyn FnMut(String),
    ) -> anyhow::Result<Kernel> {
        let mut last = anyhow!("no suite has it");
        for suite in suites {
            match self.fetch(series, suite) {
                Ok(Some(kernel)) => return Ok(kernel),
                Ok(None) => {}
                Err(error) => {
                    say(format!("kernel {series}: suite {suite} skipped: {error:#}"));
                    last = error;
                }
            }
        }
        let cached = self.cached(series).map_err(|_| last)?;
        say(format!(
            "kernel {series}: taken from the cache: {}",
            cached.version
        ));
        Ok(cached)
    }

    /// The kernel that is in the cache.
    fn cached(&self, series: &str) -> anyhow::Result<Kernel> {
        let folder = self.folder.join("kernels").join(series);
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path
                .extension()
                .is_none_or(|extension| extension != "partial")
            {
                let version = path.file_name().unwrap_or_default().display().to_string();
                return Kernel::find(&path, &version);
            }
        }
        bail!("{}: empty", folder.display())
    }

    /// The folder with what a package of a suite holds. Nothing is asked for once it is in the cache.
    ///
    /// # Errors
    /// When the suite does not have it, or cannot be had.
    pub fn package(&self, suite: &str, name: &str) -> anyhow::Result<PathBuf> {
        let place = self.folder.join("packages").join(name);
        if place.is_dir() {
            return Ok(place);
        }
        let suite = self.suite(suite)?;
        let package = suite.show(name)?;
        let partial = self.folder.join("packages.partial").join(name);
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        suite.unpack(&[package], &partial)?;
        fs::create_dir_all(self.folder.join("packages"))?;
        fs::rename(&partial, &place)?;
        Ok(place)
    }

    /// A suite as it is now.
    fn suite<'a>(&'a self, name: &'a str) -> anyhow::Result<Suite<'a>> {
        let mirror = self.mirror.as_ref().map_err(|error| anyhow!("{error}"))?;
        let suite = Suite {
            name,
            folder: self.folder.join("suites").join(name),
            mirror,
        };
        suite.update()?;
        Ok(suite)
    }

    /// The kernel of a series in its newest version in a suite; none if the suite has none.
    fn fetch(&self, series: &str, name: &str) -> anyhow::Result<Option<Kernel>> {
        let suite = self.suite(name)?;
        let Some(image) = suite.image(series)? else {
            return Ok(None);
        };
        let folder = self.folder.join("kernels").join(series);
        let place = folder.join(&image.version);
        if !place.is_dir() {
            let partial = folder.join(format!("{}.partial", image.version));
            let _ = fs::remove_dir_all(&partial);
            fs::create_dir_all(&partial)?;
            // A part may be the name of something that the image itself provides.
            let parts = image.parts().filter_map(|part| suite.show(part).ok());
            let packages: Vec<_> = parts.chain([image.clone()]).collect();
            suite.unpack(&packages, &partial)?;
            Kernel::find(&partial, &image.version)?;
            // What was there is older.
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path != partial {
                    fs::remove_dir_all(path)?;
                }
            }
            fs::rename(&partial, &place)?;
        }
        Kernel::find(&place, &image.version).map(Some)
    }
}

fn unpack(package: &Path, folder: &Path) -> anyhow::Result<()> {
    let status = Command::new("dpkg-deb")
        .arg("--extract")
        .args([package, folder])
        .status();
    let status = status.context("dpkg-deb cannot be run")?;
    ensure!(
        status.success(),
        "dpkg-deb: {}: {status}",
        package.display()
    );
    Ok(())
}

/// A suite, with the folders in which apt keeps what it knows of it.
struct Suite<'a> {
    name: &'a str,
    folder: PathBuf,
    mirror: &'a Mirror,
}

impl Suite<'_> {
    /// A command of apt that knows this suite alone. What the system's configuration says of proxies and the like stays
    /// in force.
    fn command(&self, program: &str) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        for option in [
            format!("Dir::State={folder}/state"),
            format!("Dir::Cache={folder}/cache"),
            format!("Dir::Etc::SourceList={folder}/sources.list"),
            "Dir::State::Status=/dev/null".to_owned(),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Whatever the system allows.
            "APT::Get::AllowUnauthenticated=false".to_owned(),
            "Acquire::AllowInsecureRepositories=false".to_owned(),
            // Signatures are checked; a suite that is no longer updated is still the one that is wanted.
            "Acquire::Check-Valid-Until=false".to_owned(),
            // The user that apt would become cannot write below a home.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    fn done(&self, command: &mut Command) -> anyhow::Result<Output> {
        let program = command.get_program().display().to_string();
        let output = command.output();
        let output = output.with_context(|| format!("{program} cannot be run"))?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let lines = said.lines().filter(|line| !line.trim().is_empty());
        let said: Vec<_> = lines.take(3).map(|line| self.mirror.hidden(line)).collect();
        bail!("{program}: {}", said.join("; "))
    }

    /// Has apt read the suite's list anew, unless that is done.
    fn update(&self) -> anyhow::Result<()> {
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.folder.join(folder))?;
        }
        let sources = format!(
            "deb [target=Packages signed-by={KEYRING}] {} {} main\n",
            self.mirror.of(self.name),
            self.name
        );
        let path = self.folder.join("sources.list");
        let stamp = self.folder.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
        let same = fs::read_to_string(&path).is_ok_and(|known| known == sources);
        if same && age.is_ok_and(|age| age < LIST_AGE) {
            return Ok(());
        }
        fs::write(&path, sources)?;
        let mut update = self.command("apt-get");
        // Without this a suite that cannot be had is a warning.
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        self.done(&mut update)?;
        fs::write(stamp, "")?;
        Ok(())
    }

    fn show(&self, package: &str) -> anyhow::Result<Package> {
        let mut show = self.command("apt-cache");
        let output = self.done(show.args(["show", "--no-all-versions", package]))?;
        Package::parse(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("apt-cache show {package}: no package"))
    }

    /// The package of a series' newest image.
    fn image(&self, series: &str) -> anyhow::Result<Option<Package>> {
        if series == NEWEST {
            let meta = self.show(&format!("linux-image-{FLAVOUR}"))?;
            let mut names = meta.depends.iter();
            let name = names.find(|name| is_image(name, ""));
            return name.map(|name| self.show(name)).transpose();
        }
        let mut names = self.command("apt-cache");
        let output = self.done(names.args(["pkgnames", &format!("linux-image-{series}.")]))?;
        let mut newest: Option<Package> = None;
        for name in String::from_utf8_lossy(&output.stdout).lines() {
            if !is_image(name, series) {
                continue;
            }
            let package = self.show(name)?;
            if newest
                .as_ref()
                .is_none_or(|known| is_newer(&package, known))
            {
                newest = Some(package);
            }
        }
        Ok(newest)
    }

    /// Fetches packages and puts what they hold into a folder that is empty.
    fn unpack(&self, packages: &[Package], folder: &Path) -> anyhow::Result<()> {
        for package in packages {
            self.download(package, folder)?;
        }
        // All of them now: what they hold comes into the same folder.
        let files: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
        for file in files {
            unpack(&file.path(), folder)?;
            fs::remove_file(file.path())?;
        }
        Ok(())
    }

    fn download(&self, package: &Package, folder: &Path) -> anyhow::Result<()> {
        let wanted = format!("{}={}", package.name, package.version);
        let mut download = self.command("apt-get");
        download.args(["download", &wanted]).current_dir(folder);
        self.done(&mut download).map(drop)
    }
}

/// Whether a package is an image of this series, signed and without more to its name.
fn is_image(name: &str, series: &str) -> bool {
    let version = name
        .strip_prefix("linux-image-")
        .and_then(|name| name.strip_suffix(FLAVOUR))
        .and_then(|name| name.strip_suffix('-'));
    version.is_some_and(|version| {
        version.starts_with(|first: char| first.is_ascii_digit())
            && (series.is_empty() || version.starts_with(&format!("{series}.")))
    })
}

fn is_newer(package: &Package, than: &Package) -> bool {
    Command::new("dpkg")
        .args(["--compare-versions", &package.version, "gt", &than.version])
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_systems_own() {
        let addresses = "http://tools.example/apt/\nhttp://a.example/debian/\nhttp://b.example/debian-security/\n";
        let both = Mirror::choose(addresses).unwrap();
        assert_eq!(both.of("bookworm"), "http://a.example/debian/");
        assert_eq!(
            both.of("bookworm-security"),
            "http://b.example/debian-security/"
        );
        let one = Mirror::choose("http://a.example/debian/\n").unwrap();
        assert_eq!(
            one.of("bullseye-security"),
            "http://a.example/debian-security/"
        );
        assert_eq!(Mirror::choose("http://archive.example/ubuntu/\n"), None);
    }

    #[test]
    fn messages_do_not_tell_the_mirror() {
        let mirror = Mirror::choose("http://a.example/debian/").unwrap();
        assert_eq!(
            mirror.hidden("E: http://a.example/debian-security gone: could not connect to 'a.example' (192.0.2.7)."),
            "E: the mirror gone: could not connect to 'the mirror'"
        );
        assert_eq!(
            mirror.hidden("E: [2001:db8::1] is a dead end"),
            "E: is a dead end"
        );
    }

    #[test]
    fn a_kernel_in_parts_is_followed() {
        let text = "Package: linux-image-7.3.4+deb13-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\n\
                    Depends: dracut | initramfs-tools (>= 0.120), linux-base-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), \
                    linux-binary-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), kmod\n\nPackage: other\n";
        let package = Package::parse(text).unwrap();
        assert_eq!(package.version, "7.3.4-1~bpo13+1");
        assert_eq!(
            package.parts().collect::<Vec<_>>(),
            [
                "linux-base-7.3.4+deb13-cloud-amd64",
                "linux-binary-7.3.4+deb13-cloud-amd64"
            ]
        );
        assert_eq!(Package::parse("\n"), None);
    }

    #[test]
    fn only_images_of_the_series_count() {
        assert!(is_image("linux-image-6.1.0-50-cloud-amd64", "6.1"));
        for other in [
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-6.1.0-50-cloud-amd64-dbg",
            "linux-image-6.1.0-50-amd64",
        ] {
            assert!(!is_image(other, "6.1"), "{other}");
        }
        assert!(is_image("linux-image-7.3.4+deb13-cloud-amd64", ""));
        assert!(!is_image("linux-image-cloud-amd64", ""));
    }
}
