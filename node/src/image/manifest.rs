//! Indexes and manifests: what an image is made of. Parsing, and the checks that need no bytes but
//! these. Own structs, because Docker writes `null` where the specification
//! has no field, and because a document must be refused that reads as two things at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Limits;
use super::config::ConfigFile;
use super::digest::Digest;
use super::error::ImageError;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// How a layer's tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Plain => OCI_LAYER,
            Self::Gzip => OCI_GZIP,
            Self::Zstd => OCI_ZSTD,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub manifests: Vec<Descriptor>,
}

/// What the bytes behind a manifest's name turned out to be.
#[derive(Debug)]
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// Only to see which kind of document this is, before it is read as one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads `bytes` as exactly one kind of document. One that carries the fields of both an index
    /// and a manifest means different things to different readers, and is refused.
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let malformed = |e: serde_json::Error| ImageError::malformed(what, e);
        let unsupported = |detail: &str| ImageError::Unsupported {
            what: what.to_owned(),
            detail: detail.to_owned(),
        };
        let shape: Shape = serde_json::from_slice(bytes).map_err(malformed)?;
        if shape.schema_version != 2 {
            return Err(unsupported("a manifest of another schema version than 2"));
        }
        let (index, manifest) = (
            shape.manifests.is_some(),
            shape.layers.is_some() || shape.config.is_some(),
        );
        match (index, manifest, shape.media_type.as_deref()) {
            (true, false, None | Some(OCI_INDEX | DOCKER_INDEX)) => Ok(Self::Index(
                serde_json::from_slice(bytes).map_err(malformed)?,
            )),
            (false, true, None | Some(OCI_MANIFEST | DOCKER_MANIFEST)) => Ok(Self::Manifest(
                serde_json::from_slice(bytes).map_err(malformed)?,
            )),
            (_, _, Some(other)) if !is_known(other) => Err(unsupported(other)),
            _ => Err(ImageError::malformed(
                what,
                "it is neither an index nor a manifest alone",
            )),
        }
    }
}

fn is_known(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_INDEX | DOCKER_INDEX | OCI_MANIFEST | DOCKER_MANIFEST
    )
}

/// The type a manifest gives itself; one that gives none is OCI's.
pub fn media_type(bytes: &[u8]) -> String {
    let shape = serde_json::from_slice::<Shape>(bytes).ok();
    let given = shape.and_then(|shape| shape.media_type);
    given
        .filter(|t| is_known(t))
        .unwrap_or_else(|| OCI_MANIFEST.to_owned())
}

/// This machine, in the words of the image specification.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Index {
    /// The entry for linux on this machine's architecture. Entries without a platform count only
    /// when nothing else is offered (an archive's index names its one image so).
    pub(super) fn choose(&self, reference: &str) -> Result<&Descriptor, ImageError> {
        let arch = host_architecture();
        let fits = |d: &&Descriptor| {
            d.platform
                .as_ref()
                .is_some_and(|p| p.os == "linux" && p.architecture == arch)
        };
        if let Some(found) = self.manifests.iter().find(fits) {
            return Ok(found);
        }
        match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Ok(only),
            _ => Err(ImageError::NoPlatform {
                reference: reference.to_owned(),
                wanted: format!("linux/{arch}"),
                offered: self.offered(),
            }),
        }
    }

    fn offered(&self) -> String {
        let names: Vec<String> = self
            .manifests
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .filter(|p| p.os != "unknown")
            .map(|p| match &p.variant {
                Some(variant) => format!("{}/{}/{variant}", p.os, p.architecture),
                None => format!("{}/{}", p.os, p.architecture),
            })
            .take(20)
            .collect();
        if names.is_empty() {
            "nothing".to_owned()
        } else {
            names.join(", ")
        }
    }
}

/// A layer as the manifest and the configuration together describe it.
#[derive(Debug, Clone)]
pub(super) struct LayerPlan {
    /// Of the packed bytes.
    pub digest: Digest,
    /// Of the packed bytes.
    pub size: u64,
    pub packing: Packing,
    pub diff_id: Digest,
}

impl Descriptor {
    pub(super) fn digest(&self) -> Result<Digest, ImageError> {
        self.digest.parse()
    }
}

/// Joins a manifest's layers with the configuration's diff ids, within the limits.
pub(super) fn plan(
    manifest: &Manifest,
    config: &ConfigFile,
    limits: &Limits,
) -> Result<Vec<LayerPlan>, ImageError> {
    let diff_ids = &config.rootfs.diff_ids;
    if manifest.layers.len() != diff_ids.len() {
        let detail = format!(
            "{} layers but {} diff ids",
            manifest.layers.len(),
            diff_ids.len()
        );
        return Err(ImageError::malformed("manifest", detail));
    }
    check_count(diff_ids.len(), limits)?;
    let total = manifest
        .layers
        .iter()
        .try_fold(0_u64, |sum, l| sum.checked_add(l.size));
    if total.is_none_or(|sum| sum > limits.compressed) {
        let what = "the image's compressed size".to_owned();
        return Err(ImageError::TooLarge {
            what,
            limit: limits.compressed,
        });
    }
    let join = |(layer, diff_id): (&Descriptor, &String)| {
        Ok(LayerPlan {
            digest: layer.digest()?,
            size: layer.size,
            packing: packing(&layer.media_type)?,
            diff_id: diff_id.parse()?,
        })
    };
    manifest.layers.iter().zip(diff_ids).map(join).collect()
}

pub(super) fn check_count(layers: usize, limits: &Limits) -> Result<(), ImageError> {
    if layers == 0 {
        return Err(ImageError::malformed("manifest", "the image has no layers"));
    }
    if layers > limits.layers {
        let what = "the number of layers".to_owned();
        return Err(ImageError::TooLarge {
            what,
            limit: limits.layers as u64,
        });
    }
    Ok(())
}

fn packing(media_type: &str) -> Result<Packing, ImageError> {
    match media_type {
        OCI_LAYER | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Packing::Plain),
        OCI_GZIP | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Packing::Gzip),
        OCI_ZSTD | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Packing::Zstd),
        other => Err(ImageError::Unsupported {
            what: "layer".to_owned(),
            detail: format!(
                "media type `{}`",
                other.chars().take(120).collect::<String>()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: &str) -> String {
        format!(
            r#"{{"digest":"sha256:{}","size":1{platform}}}"#,
            "0".repeat(64)
        )
    }

    fn index(entries: &[String]) -> Index {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        );
        match Document::parse("index", text.as_bytes()).expect("index") {
            Document::Index(index) => index,
            Document::Manifest(_) => panic!("an index"),
        }
    }

    #[test]
    fn a_document_is_one_thing() {
        let d = descriptor("");
        let table = [
            (
                format!(r#"{{"schemaVersion":2,"config":{d},"layers":[]}}"#),
                None,
            ),
            (
                format!(r#"{{"schemaVersion":2,"config":{d},"layers":[],"manifests":[]}}"#),
                Some("ImageInvalid"),
            ),
            (
                format!(
                    r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{d},"layers":[]}}"#
                ),
                Some("ImageInvalid"),
            ),
            (
                r#"{"schemaVersion":1,"manifests":[]}"#.to_owned(),
                Some("ImageInvalid"),
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"x/y","manifests":[]}"#.to_owned(),
                Some("ImageInvalid"),
            ),
            ("[]".to_owned(), Some("ImageInvalid")),
            (String::new(), Some("ImageInvalid")),
        ];
        for (text, code) in table {
            let found = Document::parse("manifest", text.as_bytes())
                .err()
                .map(|e| e.code());
            assert_eq!(found, code, "{text}");
        }
    }

    #[test]
    fn the_index_entry_for_this_machine_is_chosen() {
        let on = |os: &str, arch: &str| {
            descriptor(&format!(
                r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#
            ))
        };
        let arch = host_architecture();
        let found = index(&[
            on("windows", arch),
            on("unknown", "unknown"),
            on("linux", arch),
        ]);
        let platform = found
            .choose("r/a:t")
            .expect("ours")
            .platform
            .clone()
            .expect("named");
        assert_eq!(
            (platform.os.as_str(), platform.architecture.as_str()),
            ("linux", arch)
        );

        let error = index(&[on("linux", "s390x")])
            .choose("r/a:t")
            .expect_err("not ours");
        assert!(
            error.to_string().contains("it offers linux/s390x"),
            "{error}"
        );
        assert!(index(&[descriptor("")]).choose("r/a:t").is_ok());
        assert!(
            index(&[descriptor(""), descriptor("")])
                .choose("r/a:t")
                .is_err()
        );
    }

    #[test]
    fn foreign_layers_are_refused() {
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert!(matches!(
            packing(foreign),
            Err(ImageError::Unsupported { .. })
        ));
    }
}
