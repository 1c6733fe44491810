//! What a stranger's bytes meet first, one function for each kind: documents, tars, what peers say of a
//! layer, signatures. Each must come to an end within its bounds without a panic, and what it takes must
//! be what it says it is; where it is not, the function panics. Owns these functions and what a search
//! begins with. The tests here try a few hundred inputs; `deploy/fuzz` searches for as long as it is told.

mod tars;
mod trees;

use super::budget::Limits;
use super::chunks::ChunkList;
use super::config::{ConfigFile, ImageConfig};
use super::digest::Digest;
use super::manifest::{self, Document};
use super::recipe::Recipe;
use super::signature::{Key, Proof, Signature};

/// One way in.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs that get far, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, run, seeds }
}

pub const TARGETS: [Target; 8] = [
    target("manifest", manifest, || texts(&[MANIFEST, INDEX])),
    target("config", config, || texts(&[CONFIG])),
    target("tar", tars::tar, tars::seeds),
    target("whiteouts", tars::whiteouts, || vec![(0..=255).collect()]),
    target("chunks", chunks, || {
        vec![ChunkList::default().encode().unwrap_or_default()]
    }),
    target("recipe", recipe, || {
        vec![Recipe::default().encode().unwrap_or_default()]
    }),
    target("payload", payload, || texts(&[PAYLOAD])),
    target("proof", proof, || texts(&[PROOF])),
];

/// Small: what is bounded is bounded at any size, and a search should reach the bound.
const LIMITS: Limits = Limits {
    compressed: 1 << 20,
    raw: 1 << 20,
    ratio: 100,
    files: 100,
    depth: 8,
    layers: 4,
    document: 1 << 16,
    seconds: 10,
};

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:4826523ea29e2b86cb4c9b0db9d0b1f9a35a4e19d0bf2ef2ed7c27d0ec6d2d2c","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:4826523ea29e2b86cb4c9b0db9d0b1f9a35a4e19d0bf2ef2ed7c27d0ec6d2d2c","size":7}]}"#;
const INDEX: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:4826523ea29e2b86cb4c9b0db9d0b1f9a35a4e19d0bf2ef2ed7c27d0ec6d2d2c","size":2,"platform":{"architecture":"amd64","os":"linux","variant":"v1"}}]}"#;
const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"User":"0:0","Entrypoint":["/a"],"Cmd":null,"Env":["A=B"],"WorkingDir":"/","ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGTERM"},"rootfs":{"type":"layers","diff_ids":["sha256:4826523ea29e2b86cb4c9b0db9d0b1f9a35a4e19d0bf2ef2ed7c27d0ec6d2d2c"]}}"#;
const PAYLOAD: &str = r#"{"critical":{"identity":{"docker-reference":"a/b"},"image":{"docker-manifest-digest":"sha256:4826523ea29e2b86cb4c9b0db9d0b1f9a35a4e19d0bf2ef2ed7c27d0ec6d2d2c"},"type":"cosign container image signature"},"optional":null}"#;
const PROOF: &str = r#"{"signatures":[{"payload":"{}","signature":"MEUCIQ=="}],"index":"{\"schemaVersion\":2,\"manifests\":[]}"}"#;
/// Whose other half is nobody's.
const KEY: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
";

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn manifest(bytes: &[u8]) {
    assert!(!manifest::media_type(bytes).is_empty());
    match Document::parse("manifest", bytes) {
        Ok(Document::Manifest(manifest)) => plan(&manifest),
        Ok(Document::Index(index)) => {
            if let Ok(chosen) = index.choose("a/b:1") {
                assert!(
                    index
                        .manifests
                        .iter()
                        .any(|entry| entry.digest == chosen.digest)
                );
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn plan(manifest: &manifest::Manifest) {
    let Ok(mut config) = ConfigFile::parse(CONFIG.as_bytes()) else {
        return;
    };
    let one = config.rootfs.diff_ids.swap_remove(0);
    config.rootfs.diff_ids = vec![one; manifest.layers.len().min(10)];
    if let Ok(plans) = manifest::plan(manifest, &config, &LIMITS) {
        let size: u64 = plans.iter().map(|plan| plan.size).sum();
        assert!(plans.len() <= LIMITS.layers && size <= LIMITS.compressed);
    }
}

fn config(bytes: &[u8]) {
    if let Ok(file) = ConfigFile::parse(bytes) {
        let _ = file.check_platform("a/b:1");
        assert!(ImageConfig::from(&file).exposed_ports.is_sorted());
    }
}

fn chunks(bytes: &[u8]) {
    if let Ok(list) = ChunkList::decode(bytes) {
        let total: u64 = list.chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        assert_eq!(total, list.raw);
        let again = list
            .encode()
            .and_then(|bytes| ChunkList::decode(&bytes[..]));
        assert_eq!(again.ok(), Some(list));
    }
}

fn recipe(bytes: &[u8]) {
    if let Ok(recipe) = Recipe::decode(bytes) {
        // No stretch of it is empty or lost.
        let parts = recipe.range(0, recipe.raw());
        let total: u64 = parts.map(|(_, _, length)| length).sum();
        assert_eq!(total, recipe.raw());
        let again = recipe.encode().and_then(|bytes| Recipe::decode(&bytes[..]));
        assert_eq!(again.map(|again| again.raw()).ok(), Some(recipe.raw()));
        trees::outlined(&recipe);
    }
}

/// What stands in a registry beside an image: nobody signed it, so nobody did.
fn payload(bytes: &[u8]) {
    let (payload, text) = bytes.split_at(bytes.len().min(bytes.len() / 2 + 100));
    if let Ok(signature) = Signature::new(payload, &String::from_utf8_lossy(text)) {
        let signatures = vec![signature];
        nobody(&Proof {
            signatures,
            index: None,
        });
    }
}

/// What a peer gives.
fn proof(bytes: &[u8]) {
    if let Ok(proof) = serde_json::from_slice::<Proof>(bytes) {
        nobody(&proof);
    }
}

fn nobody(proof: &Proof) {
    let Ok(key) = Key::parse(KEY) else { return };
    let (signers, _) = proof.signers(&Digest::of(b"image"), &[&key]);
    assert!(signers.is_empty(), "signed by {signers:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIES: u32 = 150;

    /// The seeds, and what is near them.
    #[test]
    fn every_target_stands_what_is_like_its_seeds() {
        for target in &TARGETS {
            let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
            for seed in (target.seeds)() {
                (target.run)(&seed);
                for _ in 0..TRIES {
                    (target.run)(&changed(&seed, &mut dice));
                }
            }
        }
    }

    #[test]
    fn seeds_get_far() {
        assert!(Key::parse(KEY).is_ok());
        assert!(ConfigFile::parse(CONFIG.as_bytes()).is_ok());
        assert!(Signature::new(PAYLOAD.as_bytes(), "").is_ok());
        assert!(serde_json::from_str::<Proof>(PROOF).is_ok());
        for text in [MANIFEST, INDEX] {
            assert!(Document::parse("seed", text.as_bytes()).is_ok());
        }
    }

    fn changed(seed: &[u8], dice: &mut u64) -> Vec<u8> {
        let mut throw = |sides: usize| {
            *dice ^= *dice << 13;
            *dice ^= *dice >> 7;
            *dice ^= *dice << 17;
            usize::try_from(*dice % sides as u64).unwrap()
        };
        let mut bytes = seed.to_vec();
        for _ in 0..=throw(4) {
            let at = throw(bytes.len().max(1));
            match throw(4) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at.min(bytes.len())..),
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = u8::try_from(throw(256)).unwrap();
                    }
                }
            }
        }
        bytes
    }
}
