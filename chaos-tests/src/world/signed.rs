//! Signatures of images in the world's registry, in cosign's format: made with openssl, pushed with
//! skopeo.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::shell::run;
use super::{World, registry_name};

const OCI: &str = "application/vnd.oci.image";
const SIGNED: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

impl World {
    /// A new pair of keys. Returns the file of the public one, beside which the other lies.
    pub fn signer(&self, name: &str) -> Result<PathBuf> {
        let public = self.dir().join(format!("{name}.pub"));
        let (key, shown) = (public.with_extension("key"), public.display().to_string());
        let key = key.display().to_string();
        let curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
        run("openssl", [&["genpkey", "-out", &key], &curve[..]].concat())?.ok()?;
        let pubout = ["pkey", "-in", &key, "-pubout", "-out", &shown];
        run("openssl", pubout)?.ok()?;
        Ok(public)
    }

    /// Signs what the registry has under a name, as `cosign sign --key` does. Returns the tag of the
    /// signature.
    pub fn sign(&self, name: &str, signer: &Path) -> Result<String> {
        let (registry, dir) = (registry_name(&self.tag), self.dir().join("signature"));
        let image = format!("docker://{registry}/{name}:1");
        let inspect = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}"];
        let digest = run("skopeo", [&inspect[..], &[&image]].concat())?.ok()?.out;
        let digest = digest.trim();
        let hex = digest.strip_prefix("sha256:").context("no digest")?;
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{registry}/{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = signature(&dir, signer, &payload)?;
        let config = put(&dir, r#"{"architecture":"","os":"","config":{}}"#)?;
        let payload = put(&dir, &payload)?;
        let manifest = put(
            &dir,
            &format!(
                r#"{{"schemaVersion":2,"mediaType":"{OCI}.manifest.v1+json","config":{{"mediaType":"{OCI}.config.v1+json",{config}}},"layers":[{{"mediaType":"{SIGNED}",{payload},"annotations":{{"dev.cosignproject.cosign/signature":"{signature}"}}}}]}}"#
            ),
        )?;
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{OCI}.manifest.v1+json",{manifest},"annotations":{{"org.opencontainers.image.ref.name":"s"}}}}]}}"#
        );
        fs::write(dir.join("index.json"), index)?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let from = format!("oci:{}:s", dir.display());
        let tag = format!("sha256-{hex}.sig");
        let to = format!("docker://{registry}/{name}:{tag}");
        let copy = ["copy", "--insecure-policy", "--dest-tls-verify=false"];
        run("skopeo", [&copy[..], &[&from, &to]].concat())?.ok()?;
        Ok(tag)
    }
}

/// Of a text, in base64 on one line.
fn signature(dir: &Path, signer: &Path, text: &str) -> Result<String> {
    let (key, given, made) = (
        signer.with_extension("key"),
        dir.join("given"),
        dir.join("made"),
    );
    fs::write(&given, text)?;
    let sign = [Path::new("dgst"), Path::new("-sha256"), Path::new("-sign")];
    let what = [&key, Path::new("-out"), &made, &given];
    run("openssl", sign.iter().chain(&what))?.ok()?;
    let encoded = run("base64", [Path::new("-w0"), &made])?.ok()?.out;
    Ok(encoded.trim().to_owned())
}

/// Puts a blob into a layout and returns how a descriptor names it.
fn put(dir: &Path, text: &str) -> Result<String> {
    let file = dir.join("blob");
    fs::write(&file, text)?;
    let sum = run("sha256sum", [&file])?.ok()?.out;
    let hex = sum.split_whitespace().next().context("no sum")?;
    fs::rename(&file, dir.join("blobs/sha256").join(hex))?;
    Ok(format!(r#""digest":"sha256:{hex}","size":{}"#, text.len()))
}
