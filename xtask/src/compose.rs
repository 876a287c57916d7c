//! Whether Compose takes deploy/compose, by its schema, and whether that asks for no more than the manifests do.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::{kubernetes, pypi::Packages, step, target_folder};

const FOLDER: &str = "deploy/compose";
const FILE: &str = "deploy/compose/compose.yaml";
const GPU: &str = "deploy/compose/gpu.yaml";
const BASE: &str = "deploy/kubernetes/base/daemonset.yaml";

/// Manifests that name the images of Prometheus and Grafana.
const LAPTOP: [&str; 2] = [
    "deploy/kubernetes/overlays/kind/prometheus.yaml",
    "deploy/kubernetes/overlays/kind/grafana.yaml",
];

/// Checks both files.
pub(crate) fn check() -> anyhow::Result<()> {
    let file: Value = read(FILE)?;
    let gpu: Value = read(GPU)?;
    on_loopback(&file)?;
    sources_are_there(&file)?;
    as_the_base(&file, &gpu, &read(BASE)?)?;
    let laptop = LAPTOP.map(fs::read_to_string);
    for text in laptop {
        let text = text?;
        let image = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("image: "));
        let image = image.context("the laptop's manifests name no image")?;
        let services = file["services"].as_object().into_iter().flatten();
        let mut images = services.map(|(_, service)| &service["image"]);
        ensure!(
            images.any(|it| it == image),
            "{FILE}: {image} is the laptop's, and none is here"
        );
    }
    // What comes from PyPI besides is compiled for x86-64.
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!(
            "==> Compose's schema: SKIPPED, what holds a file against it is fetched for x86-64 alone"
        );
        return Ok(());
    }
    let packages = Packages {
        what: "the schema of Compose",
        requirements: "deploy/compose/requirements.txt",
        variable: "SENTRY_COMPOSE_SCHEMA",
        folder: "compose",
        compiled: false,
    };
    let schema = packages.fetch()?.join("compose/config/compose_spec.json");
    let folder = env::current_dir()?.join(target_folder());
    for (path, document) in [(FILE, &file), (GPU, &gpu)] {
        let instance = folder.join(path.replace('/', "-") + ".json");
        fs::write(&instance, document.to_string())?;
        let mut validate = Command::new("python3");
        validate.env("PYTHONPATH", kubernetes::packages()?);
        // It says that another program is to take its place.
        validate.args(["-W", "ignore", "-m", "jsonschema", "-i"]);
        step(path, validate.arg(&instance).arg(&schema))?;
    }
    Ok(())
}

fn read(path: &str) -> anyhow::Result<Value> {
    let text = fs::read_to_string(path).context(path.to_owned())?;
    serde_saphyr::from_str(&text).context(path.to_owned())
}

fn services(file: &Value) -> impl Iterator<Item = (&String, &Value)> {
    file["services"].as_object().into_iter().flatten()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Nobody else can reach what is served without a password.
fn on_loopback(file: &Value) -> anyhow::Result<()> {
    for (name, service) in services(file) {
        let ports = list(&service["ports"]);
        ensure!(!ports.is_empty(), "{name}: publishes nothing");
        for port in ports {
            let port = port.as_str().unwrap_or_default();
            ensure!(
                port.starts_with("127.0.0.1:"),
                "{name}: {port} is not on loopback"
            );
        }
        ensure!(
            service["cap_drop"] == json!(["ALL"]),
            "{name}: keeps capabilities"
        );
        ensure!(
            service["network_mode"].is_null() && service["privileged"].is_null(),
            "{name}: a network or privileges of the host"
        );
    }
    Ok(())
}

/// Each mount of a file here has its file, and nothing but data is written.
fn sources_are_there(file: &Value) -> anyhow::Result<()> {
    for (name, service) in services(file) {
        for mount in list(&service["volumes"]) {
            let mount = mount.as_str().unwrap_or_default();
            let mut parts = mount.split(':');
            let source = parts.next().unwrap_or_default();
            let mode = parts.nth(1).unwrap_or_default();
            if source.starts_with(['.', '/']) {
                ensure!(
                    mode.split(',').any(|it| it == "ro"),
                    "{name}: {mount} can be written"
                );
            } else {
                ensure!(
                    file["volumes"][source].is_object(),
                    "{name}: {source} is no volume"
                );
            }
            ensure!(
                !source.starts_with('.') || Path::new(FOLDER).join(source).exists(),
                "{name}: there is no {source}"
            );
        }
    }
    Ok(())
}

/// The agent has the settings, capabilities and mounts that it has in Kubernetes, and those of the gpu component.
fn as_the_base(file: &Value, gpu: &Value, base: &Value) -> anyhow::Result<()> {
    let agent = &file["services"]["agent"];
    let pod = &base["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    for variable in list(&container["env"]) {
        let name = variable["name"].as_str().unwrap_or_default();
        // There is no API server.
        if !variable["valueFrom"].is_null() {
            continue;
        }
        ensure!(
            agent["environment"][name] == variable["value"],
            "agent: {name} is not as in {BASE}"
        );
    }
    let security = &container["securityContext"];
    let user = &pod["securityContext"]["runAsUser"];
    for (what, found, wanted) in [
        ("user", &agent["user"], json!(format!("{user}:{user}"))),
        (
            "cap_add",
            &agent["cap_add"],
            security["capabilities"]["add"].clone(),
        ),
        (
            "read_only",
            &agent["read_only"],
            security["readOnlyRootFilesystem"].clone(),
        ),
        (
            "cap_add for GPUs",
            &gpu["services"]["agent"]["cap_add"],
            json!(kubernetes::GPU_CAPABILITIES),
        ),
        (
            "pid for GPUs",
            &gpu["services"]["agent"]["pid"],
            json!("host"),
        ),
    ] {
        ensure!(*found == wanted, "agent: {what} is {found}, not {wanted}");
    }
    let places: Vec<_> = list(&container["volumeMounts"])
        .iter()
        .map(|mount| mount["mountPath"].as_str().unwrap_or_default())
        .collect();
    for mount in list(&agent["volumes"]) {
        let mount = mount.as_str().unwrap_or_default();
        let place = mount.split(':').nth(1).unwrap_or_default();
        ensure!(
            places.contains(&place),
            "agent: {place} is not mounted in {BASE}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(place: &str, value: Value) -> Value {
        let text = fs::read_to_string(Path::new("..").join(FILE)).unwrap();
        let mut file: Value = serde_saphyr::from_str(&text).unwrap();
        *file.pointer_mut(place).unwrap() = value;
        file
    }

    #[test]
    fn more_than_the_manifests_ask_for_is_refused() {
        let base = fs::read_to_string(Path::new("..").join(BASE)).unwrap();
        let base: Value = serde_saphyr::from_str(&base).unwrap();
        let gpu = fs::read_to_string(Path::new("..").join(GPU)).unwrap();
        let gpu: Value = serde_saphyr::from_str(&gpu).unwrap();
        let refused = |place: &str, value: Value| {
            let file = changed(place, value);
            let result = on_loopback(&file).and_then(|()| as_the_base(&file, &gpu, &base));
            result.unwrap_err().to_string()
        };
        for (place, value, reason) in [
            (
                "/services/grafana/ports",
                json!(["3000:3000"]),
                "is not on loopback",
            ),
            (
                "/services/grafana/ports/0",
                json!("0.0.0.0:3000:3000"),
                "is not on loopback",
            ),
            (
                "/services/agent/cap_add/0",
                json!("SYS_ADMIN"),
                "cap_add is",
            ),
            (
                "/services/agent/cap_drop",
                json!(null),
                "keeps capabilities",
            ),
            ("/services/agent/user", json!("0"), "user is"),
            (
                "/services/agent/environment/SENTRY_SERIES_MAX",
                json!("9"),
                "SENTRY_SERIES_MAX",
            ),
            (
                "/services/agent/volumes/0",
                json!("/:/host:ro"),
                "/host is not mounted",
            ),
        ] {
            let said = refused(place, value);
            assert!(said.contains(reason), "{place}: {said}");
        }
    }
}
