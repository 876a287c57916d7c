//! The container image: its building, and what must be true of it.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{Cursor, Read},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::{as_root, release, step, succeeds, target_folder};

/// What the manifests ask for; the one of the same version besides is for people.
const LATEST: &str = "sentry:latest";

/// How large an image may be, in bytes.
const LIMIT: u64 = 14_000_000;

/// The capabilities of the program's file, by their numbers in `include/uapi/linux/capability.h`.
const CAPABILITIES: [(&str, u32); 5] = [
    ("cap_bpf", 39),
    ("cap_perfmon", 38),
    ("cap_dac_read_search", 2),
    ("cap_sys_ptrace", 19),
    ("cap_checkpoint_restore", 40),
];

/// Where an archive keeps them.
const CAPABILITIES_KEY: &str = "SCHILY.xattr.security.capability";

const DESCRIPTION: &str = env!("CARGO_PKG_DESCRIPTION");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A program that builds images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Docker,
    Podman,
    Buildah,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Buildah => "buildah",
        }
    }

    /// Whether it is there and works: a client of Docker without its daemon does not.
    fn works(self) -> bool {
        succeeds(Command::new(self.name()).arg("info"))
    }

    fn build(self) -> Vec<&'static str> {
        match self {
            Self::Docker | Self::Podman => vec!["build"],
            // Runs what it has to without a container of its own, so in a container as well.
            Self::Buildah => vec!["bud", "--isolation", "chroot"],
        }
    }

    /// The arguments that write an image into an archive, as `docker load` takes it, under its own name: podman and
    /// buildah call theirs `localhost/...` otherwise, which no manifest asks for.
    fn save(self, image: &str, archive: &Path) -> Vec<OsString> {
        if self == Self::Docker {
            return vec![
                "save".into(),
                "--output".into(),
                archive.into(),
                image.into(),
            ];
        }
        let mut to = OsString::from("docker-archive:");
        to.push(archive);
        to.push(format!(":{image}"));
        vec!["push".into(), "--quiet".into(), image.into(), to]
    }
}

/// The first that works.
fn engine(order: [Engine; 3]) -> anyhow::Result<Engine> {
    order.into_iter().find(|engine| engine.works()).context(
        "none of docker, podman and buildah works here, of which one is needed: `apt install buildah` brings one that needs no daemon",
    )
}

/// Builds the image from source, in a container.
pub(crate) fn from_source() -> anyhow::Result<()> {
    let engine = engine([Engine::Docker, Engine::Podman, Engine::Buildah])?;
    let mut build = Command::new(engine.name());
    build.args(engine.build()).env("DOCKER_BUILDKIT", "1");
    finish(engine, build, Path::new("."))
}

/// Builds it from the program that is built here: no other image is needed, and no network.
pub(crate) fn prebuilt() -> anyhow::Result<()> {
    let program = release()?;
    let engine = engine([Engine::Buildah, Engine::Podman, Engine::Docker])?;
    let context = context(&program)?;
    let mut build = Command::new(engine.name());
    build
        .args(engine.build())
        .args(["--target", "prebuilt"])
        .env("DOCKER_BUILDKIT", "1");
    finish(engine, build, &context)
}

fn finish(engine: Engine, mut build: Command, context: &Path) -> anyhow::Result<()> {
    let image = format!("sentry:{VERSION}");
    build.args(["--tag", &image]);
    arguments(&mut build, LATEST, context)?;
    step(&format!("image, by {}", engine.name()), &mut build)?;
    let archive = target_folder().join("sentry-image.tar");
    // Neither podman nor buildah writes over one.
    let _ = fs::remove_file(&archive);
    quietly(Command::new(engine.name()).args(engine.save(LATEST, &archive)))?;
    let size = check(&archive)?;
    eprintln!(
        "==> {image}, {LATEST}: {:.1} MB, {} has it, and {}",
        megabytes(size),
        engine.name(),
        archive.display()
    );
    Ok(())
}

/// What all builds are told.
fn arguments(build: &mut Command, image: &str, context: &Path) -> anyhow::Result<()> {
    let git = Command::new("git").args(["rev-parse", "HEAD"]).output();
    let revision = git.ok().filter(|output| output.status.success());
    let revision = revision.map_or_else(
        || Ok("unknown".to_owned()),
        |output| String::from_utf8(output.stdout),
    )?;
    build.args(["--file", "Dockerfile", "--tag", image]);
    for (name, value) in [
        ("VERSION", VERSION),
        ("REVISION", revision.trim()),
        ("SOURCE", &env::var("SOURCE").unwrap_or_default()),
    ] {
        build.arg("--build-arg").arg(format!("{name}={value}"));
    }
    build.arg(context);
    Ok(())
}

/// The program, with the capabilities of its file, in an archive: nobody needs to be root for that.
fn context(program: &Path) -> anyhow::Result<PathBuf> {
    let context = target_folder().join("image");
    fs::create_dir_all(&context).with_context(|| context.display().to_string())?;
    let archive = context.join("sentry.tar");
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    let mut header = tar::Header::new_ustar();
    header.set_path("sentry")?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len().try_into()?);
    header.set_cksum();
    let file = File::create(&archive).with_context(|| archive.display().to_string())?;
    let mut writer = tar::Builder::new(file);
    let value = capabilities();
    writer.append_pax_extensions([(CAPABILITIES_KEY, value.as_slice())])?;
    writer.append(&header, bytes.as_slice())?;
    writer.finish()?;
    Ok(context)
}

/// They, as the kernel reads them: `struct vfs_cap_data`, revision 2. All are permitted, and none is effective.
fn capabilities() -> Vec<u8> {
    let permitted = CAPABILITIES
        .iter()
        .fold(0_u64, |all, (_, number)| all | 1 << number);
    let [low, high] = [permitted, permitted >> 32].map(u64::to_le_bytes);
    let (revision, none) = (0x0200_0000_u32.to_le_bytes(), [0; 4]);
    [&revision, &low[..4], &none, &high[..4], &none].concat()
}

/// Where the tests have what they look at.
fn workshop() -> PathBuf {
    target_folder().join("image-test")
}

/// Builds the image as `make image-prebuilt` does, by buildah, of this program, and unpacks it. The folder, which is
/// root's, until [`forget`].
pub(crate) fn unpacked(program: &Path) -> anyhow::Result<PathBuf> {
    forget()?;
    let workshop = workshop();
    fs::create_dir_all(&workshop).with_context(|| workshop.display().to_string())?;
    let workshop = workshop.canonicalize()?;
    // A store of its own, with the driver that works on every filesystem.
    let buildah = || {
        let mut buildah = as_root("buildah")?;
        buildah.args(["--storage-driver", "vfs", "--root"]);
        buildah.arg(workshop.join("store")).arg("--runroot");
        buildah.arg(workshop.join("run"));
        anyhow::Ok(buildah)
    };
    // As the release is; the guests' program has its symbols, for the sake of what it says when it fails.
    let stripped = workshop.join("sentry");
    quietly(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    let image = "sentry:test";
    let mut bud = buildah()?;
    bud.args(Engine::Buildah.build())
        .args(["--target", "prebuilt"]);
    arguments(&mut bud, image, &context(&stripped)?)?;
    step("image, by buildah", &mut bud)?;
    let archive = workshop.join("image.tar");
    quietly(buildah()?.args(Engine::Buildah.save(image, &archive)))?;
    let size = check(&archive)?;
    eprintln!("==> image: {:.1} MB", megabytes(size));
    let root = workshop.join("root");
    quietly(as_root("mkdir")?.arg(&root))?;
    for layer in contents(&archive)?.layers {
        let file = workshop.join("layer.tar");
        fs::write(&file, layer)?;
        let mut unpack = as_root("tar")?;
        unpack
            .args(["--xattrs", "--xattrs-include=security.capability"])
            .args(["--extract", "--directory"])
            .arg(&root)
            .arg("--file")
            .arg(&file);
        quietly(&mut unpack)?;
    }
    Ok(root)
}

/// Removes it, which only root can.
pub(crate) fn forget() -> anyhow::Result<()> {
    let workshop = workshop();
    if workshop.exists() {
        quietly(as_root("rm")?.arg("-rf").arg(workshop))?;
    }
    Ok(())
}

/// Runs a command that has something to say only where it fails.
fn quietly(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| program.clone())?;
    ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// What an archive of an image has in it.
struct Contents {
    /// What a runtime is told, by the specification of OCI images.
    config: Value,
    /// Its layers, each an archive, unpacked where it was packed.
    layers: Vec<Vec<u8>>,
}

fn contents(archive: &Path) -> anyhow::Result<Contents> {
    let member = |wanted: &str| -> anyhow::Result<Vec<u8>> {
        let file = File::open(archive).with_context(|| archive.display().to_string())?;
        let mut archive = tar::Archive::new(file);
        for entry in archive.entries()? {
            let mut entry = entry?;
            if entry.path()?.as_os_str() == wanted {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                return Ok(bytes);
            }
        }
        bail!("no {wanted}")
    };
    let manifest: Value = serde_json::from_slice(&member("manifest.json")?)?;
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let config = serde_json::from_slice(&member(&name(&manifest[0]["Config"]))?)?;
    let layers = manifest[0]["Layers"].as_array().context("no layers")?;
    let layers = layers.iter().map(|layer| {
        let bytes = member(&name(layer))?;
        if !bytes.starts_with(&[0x1f, 0x8b]) {
            return Ok(bytes);
        }
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut unpacked)?;
        Ok(unpacked)
    });
    Ok(Contents {
        config,
        layers: layers.collect::<anyhow::Result<_>>()?,
    })
}

/// Asserts what must be true of the image in an archive. Its size in bytes, unpacked.
fn check(archive: &Path) -> anyhow::Result<u64> {
    let contents = contents(archive).with_context(|| archive.display().to_string())?;
    contents
        .check()
        .with_context(|| format!("the image in {}", archive.display()))
}

impl Contents {
    fn check(&self) -> anyhow::Result<u64> {
        let size = self.layers.iter().map(Vec::len).sum::<usize>().try_into()?;
        ensure!(
            size < LIMIT,
            "{:.1} MB, and less than {:.0} MB are allowed",
            megabytes(size),
            megabytes(LIMIT)
        );
        let config = &self.config["config"];
        for (place, expected) in [
            ("/User", "65532:65532".into()),
            ("/Entrypoint", vec!["/sentry"].into()),
            ("/ExposedPorts", serde_json::json!({"9763/tcp": {}})),
        ] {
            let found = config.pointer(place).unwrap_or(&Value::Null);
            ensure!(
                *found == expected,
                "{place} is {found} and must be {expected}"
            );
        }
        let variables = config["Env"].as_array().into_iter().flatten();
        ensure!(
            variables
                .clone()
                .any(|value| value == "SENTRY_WEB_LISTEN_ADDRESS=:9763"),
            "nobody outside could scrape it: its variables are {variables:?}"
        );
        for (name, expected) in [
            ("title", Some("sentry")),
            ("description", Some(DESCRIPTION)),
            ("licenses", Some(env!("CARGO_PKG_LICENSE"))),
            ("version", Some(VERSION)),
            ("revision", None),
            ("source", None),
        ] {
            let label = &config["Labels"][format!("org.opencontainers.image.{name}")];
            let found = label.as_str().with_context(|| format!("no label {name}"))?;
            ensure!(
                expected.is_none_or(|expected| found == expected),
                "the label {name} is {found:?} and must be {expected:?}"
            );
        }
        self.check_files()?;
        Ok(size)
    }

    /// That its only file is the program, which anybody may run, nobody may change, and whose capabilities are there.
    fn check_files(&self) -> anyhow::Result<()> {
        let mut names = Vec::new();
        for layer in &self.layers {
            let mut archive = tar::Archive::new(Cursor::new(layer));
            for entry in archive.entries()? {
                let mut entry = entry?;
                let name = entry.path()?.display().to_string();
                if entry.header().entry_type().is_dir() {
                    continue;
                }
                let header = entry.header();
                let (uid, gid, mode) = (header.uid()?, header.gid()?, header.mode()? & 0o7777);
                ensure!(
                    (uid, gid, mode) == (0, 0, 0o755),
                    "{name} is of user {uid} and group {gid} with mode {mode:o}, and must be root's with 755"
                );
                let mut found = None;
                for extension in entry.pax_extensions()?.into_iter().flatten() {
                    let extension = extension?;
                    if extension.key_bytes() == CAPABILITIES_KEY.as_bytes() {
                        found = Some(extension.value_bytes().to_vec());
                    }
                }
                ensure!(
                    found.as_ref() == Some(&capabilities()),
                    "{name}: the capabilities of the file are lost, or other ones: Docker must build with BuildKit"
                );
                names.push(name);
            }
        }
        ensure!(names == ["sentry"], "its files are {names:?}");
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKERFILE: &str = include_str!("../../Dockerfile");

    #[test]
    fn the_dockerfile_gives_the_same_capabilities() {
        let names = CAPABILITIES.map(|(name, _)| name).join(",");
        let line = format!("setcap {names}=p /image/sentry\n");
        assert!(DOCKERFILE.contains(&line), "{line}");
    }

    #[test]
    fn the_dockerfile_says_what_cargo_toml_says() {
        for line in [
            format!("ARG VERSION={VERSION}\n"),
            format!("image.description=\"{DESCRIPTION}\""),
        ] {
            assert!(DOCKERFILE.contains(&line), "{line}");
        }
    }

    /// As `setcap` has written it, read by `getfattr`.
    #[test]
    fn capabilities_are_as_the_kernel_reads_them() {
        let bytes = capabilities();
        assert_eq!(bytes.len(), 20);
        assert_eq!(bytes[..4], [0, 0, 0, 2]);
        assert_eq!(bytes[4..8], (1_u32 << 2 | 1 << 19).to_le_bytes());
        assert_eq!(bytes[12..16], (1_u32 << 6 | 1 << 7 | 1 << 8).to_le_bytes());
        assert_eq!([&bytes[8..12], &bytes[16..]].concat(), [0; 8]);
    }

    #[test]
    fn an_archive_is_written_under_the_images_own_name() {
        for engine in [Engine::Docker, Engine::Podman, Engine::Buildah] {
            let arguments = engine.save("sentry:1", Path::new("/x.tar"));
            let arguments: Vec<_> = arguments
                .iter()
                .map(|part| part.to_str().unwrap())
                .collect();
            let expected = match engine {
                Engine::Docker => "save --output /x.tar sentry:1",
                Engine::Podman | Engine::Buildah => {
                    "push --quiet sentry:1 docker-archive:/x.tar:sentry:1"
                }
            };
            assert_eq!(arguments.join(" "), expected);
        }
    }

    fn image(capability: Option<&[u8]>) -> Contents {
        let mut layer = tar::Builder::new(Vec::new());
        if let Some(value) = capability {
            layer
                .append_pax_extensions([(CAPABILITIES_KEY, value)])
                .unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_path("sentry").unwrap();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(3);
        header.set_cksum();
        layer.append(&header, &b"ELF"[..]).unwrap();
        let label = |name: &str| format!("org.opencontainers.image.{name}");
        Contents {
            config: serde_json::json!({"config": {
                "User": "65532:65532",
                "Entrypoint": ["/sentry"],
                "ExposedPorts": {"9763/tcp": {}},
                "Env": ["PATH=/", "SENTRY_WEB_LISTEN_ADDRESS=:9763"],
                "Labels": {
                    label("title"): "sentry",
                    label("description"): DESCRIPTION,
                    label("licenses"): "Apache-2.0",
                    label("version"): VERSION,
                    label("revision"): "unknown",
                    label("source"): "",
                },
            }}),
            layers: vec![layer.into_inner().unwrap()],
        }
    }

    #[test]
    fn an_image_is_looked_at() {
        let good = capabilities();
        assert_eq!(image(Some(&good)).check().unwrap(), 4 * 512 + 1024);
        let refusal = |image: &Contents| image.check().unwrap_err().to_string();
        let lost = "sentry: the capabilities of the file are lost, or other ones: Docker must build with BuildKit";
        assert_eq!(refusal(&image(None)), lost);
        let mut effective = good.clone();
        effective[0] |= 1;
        assert_eq!(refusal(&image(Some(&effective))), lost);

        let mut root = image(Some(&good));
        root.config["config"]["User"] = "0".into();
        assert_eq!(refusal(&root), "/User is \"0\" and must be \"65532:65532\"");
        let mut large = image(Some(&good));
        large.layers[0].resize(14_000_000, 0);
        assert_eq!(refusal(&large), "14.0 MB, and less than 14 MB are allowed");
        let mut twice = image(Some(&good));
        twice.layers.push(twice.layers[0].clone());
        assert_eq!(refusal(&twice), "its files are [\"sentry\", \"sentry\"]");
    }
}
