//! Manifests, indexes and configurations that mean harm, and what is left of honest ones when somebody
//! changes a few bytes: they are refused or read, and nothing panics.

use proptest::prelude::*;

use super::config::{ConfigFile, ImageConfig};
use super::manifest::{self, Document};
use super::{Digest, ImageError, Limits};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn layer(more: &str) -> String {
    let digest = Digest::of(b"layer");
    format!(r#"{{"mediaType":"{LAYER}","digest":"{digest}","size":10{more}}}"#)
}

fn manifest(layers: &[String]) -> String {
    let config = Digest::of(b"config");
    let layers = layers.join(",");
    format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{config}","size":1}},"layers":[{layers}]}}"#
    )
}

fn index(entries: usize) -> String {
    let entry = format!(
        r#"{{"digest":"{}","size":1,"platform":{{"os":"linux","architecture":"none"}}}}"#,
        Digest::of(b"m")
    );
    let entries = vec![entry; entries].join(",");
    format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#)
}

fn config(diff_ids: usize) -> String {
    let ids = vec![format!(r#""{}""#, Digest::of(b"raw")); diff_ids].join(",");
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"User":"1:2","Cmd":["a"],"Env":["A=b"],
        "ExposedPorts":{{"80/tcp":{{}}}},"WorkingDir":"/w"}},"rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
    )
}

/// What a pull does with the documents of an image, before it asks for a layer.
fn read(manifest: &[u8], config: &[u8]) -> Result<usize, ImageError> {
    match Document::parse("the manifest", manifest)? {
        Document::Index(index) => index.choose("r/a:t").map(|_| 0),
        Document::Manifest(manifest) => {
            let config = ConfigFile::parse(config)?;
            let _ = config.check_platform("r/a:t");
            let _ = ImageConfig::from(&config);
            Ok(manifest::plan(&manifest, &config, &Limits::default())?.len())
        }
    }
}

#[test]
fn floods_and_lies_in_documents_are_refused() {
    let one = |layer: String| manifest(&[layer]);
    let replaced = |from: &str, to: &str| one(layer("").replacen(from, to, 1));
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = one(layer("")).replacen("[{", &format!(r#"[],"x":{nested},"y":[{{"#), 1);
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let table = [
        (
            "the number of layers",
            manifest(&vec![layer(""); 129]),
            config(129),
        ),
        // As many as fit into the largest document.
        (
            "the number of layers",
            manifest(&vec![layer(""); 25_000]),
            config(25_000),
        ),
        ("layers but 2 diff ids", one(layer("")), config(2)),
        ("no layers", manifest(&[]), config(0)),
        ("compressed size", replaced(":10", ":9000000000"), config(1)),
        (
            "compressed size",
            manifest(&vec![replaced_size(); 3]),
            config(3),
        ),
        ("the manifest", replaced(":10", ":-1"), config(1)),
        ("the manifest", replaced(":10", ":1e400"), config(1)),
        (
            "not a digest",
            replaced("sha256:", "sha256:../../"),
            config(1),
        ),
        ("not a digest", replaced("sha256:", "sha512:"), config(1)),
        (
            "not a digest",
            one(layer("")),
            config(1).replace("sha256:", "md5:"),
        ),
        ("not supported", replaced(LAYER, foreign), config(1)),
        ("0 layers but 1 diff ids", deep, config(1)),
        ("the manifest", one(layer(r#","size":11"#)), config(1)),
        ("image configuration", one(layer("")), "[]".into()),
        ("image configuration", one(layer("")), nested),
        ("no image for", index(20_000), config(1)),
    ];
    for (expected, manifest, config) in table {
        let error = read(manifest.as_bytes(), config.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{expected}: {error:.300}");
        assert!(error.len() < 2000, "a flood of words: {error:.300}");
    }
    // Where else its bytes might be is nobody's to say but the registry's: never read.
    let elsewhere = one(layer(r#","urls":["http://169.254.169.254/latest"]"#));
    assert_eq!(read(elsewhere.as_bytes(), config(1).as_bytes()).unwrap(), 1);
}

fn replaced_size() -> String {
    layer("").replacen(":10", &format!(":{}", u64::MAX), 1)
}

#[derive(Debug, Clone)]
pub(super) enum Mutation {
    Set(usize, u8),
    Flip(usize, u8),
    Cut(usize),
    Remove(usize, usize),
    Repeat(usize, usize),
    Insert(usize, Vec<u8>),
}

/// Changes of a few bytes, and pieces that matter to a parser.
pub(super) fn mutations(tokens: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<Mutation>> {
    let at = any::<usize>;
    let token = prop::sample::select(tokens).prop_map(<[u8]>::to_vec);
    let one = prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        4 => (at(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, 1 << bit)),
        1 => at().prop_map(Mutation::Cut),
        2 => (at(), 1..600_usize).prop_map(|(at, len)| Mutation::Remove(at, len)),
        2 => (at(), 1..2000_usize).prop_map(|(at, len)| Mutation::Repeat(at, len)),
        4 => (at(), token).prop_map(|(at, token)| Mutation::Insert(at, token)),
    ];
    prop::collection::vec(one, 1..8)
}

pub(super) fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        match mutation {
            Mutation::Set(at, byte) => bytes[at % len] = *byte,
            Mutation::Flip(at, bits) => bytes[at % len] ^= bits,
            Mutation::Cut(at) => bytes.truncate(at % len),
            Mutation::Remove(at, n) => {
                let from = at % len;
                bytes.drain(from..(from + n).min(len));
            }
            Mutation::Repeat(at, n) => {
                let from = at % len;
                let piece = bytes[from..(from + n).min(len)].to_vec();
                bytes.splice(from..from, piece);
            }
            Mutation::Insert(at, token) => {
                let from = at % len;
                bytes.splice(from..from, token.iter().copied());
            }
        }
    }
}

const JSON: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"null",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b"\\ud800",
    b",",
    b":",
    b"\"layers\":",
    b"\"manifests\":[]",
    b"\"mediaType\":\"x\"",
    b"sha256:",
    b"\xff",
    b"\0",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn changed_documents_are_read_or_refused(
        which in 0..3_usize,
        of_manifest in mutations(JSON),
        of_config in mutations(JSON),
    ) {
        let mut first = [manifest(&[layer(""), layer("")]), index(2), manifest(&[])][which].clone().into_bytes();
        let mut second = config(2).into_bytes();
        let _ = read(&first, &second);
        mutate(&mut first, &of_manifest);
        let _ = read(&first, &second);
        mutate(&mut second, &of_config);
        let _ = read(manifest(&[layer(""), layer("")]).as_bytes(), &second);
        if let Err(error) = read(&first, &second) {
            prop_assert!(!error.to_string().contains(['\n', '\x1b', '\0']), "{error}");
        }
    }
}
