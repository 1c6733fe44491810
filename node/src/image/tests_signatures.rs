//! Signatures in cosign's format: which of them count, whose are demanded, and what is wrong with rules.

use std::fs;
use std::path::PathBuf;

use super::signature::{MAX_PAYLOAD, Proof, Refusal, Signature};
use super::signing::{CURVE, Signer, payload, rule};
use super::testing::temp;
use super::{Digest, Policy, SignatureRule};

/// What is signed, by which signatures, with which index, whether it counts and what is said.
type Case<'a> = (
    &'a str,
    Vec<Signature>,
    Option<&'a str>,
    bool,
    &'a [Refusal],
);

fn listing(image: &Digest) -> String {
    format!(r#"{{"manifests":[{{"digest":"{image}","size":1}}]}}"#)
}

#[test]
fn only_a_known_key_over_this_digest_counts() {
    let image = Digest::of(b"image");
    let (other, index) = (Digest::of(b"other"), listing(&image));
    let stranger = Signer::new(&CURVE);
    let kinds: [&[&str]; 3] = [&CURVE, &["-algorithm", "ED25519"], &["-algorithm", "RSA"]];
    for kind in kinds {
        let signer = Signer::new(kind);
        let (key, strange) = (signer.key(), stranger.key());
        let signed =
            |payload: &[u8], by: &Signer| Signature::new(payload, &by.sign(payload)).unwrap();
        let right = signed(&payload(&image), &signer);
        let foreign = signed(&payload(&image), &stranger);
        let moved = signed(&payload(&other), &signer);
        let listed = signed(&payload(&Digest::of(index.as_bytes())), &signer);
        let untyped = signed(&payload(&image).to_ascii_uppercase(), &signer);
        let garbled = Signature::new(&payload(&image), "?").unwrap();
        let swapped = Signature::new(&payload(&image), &signer.sign(&payload(&other))).unwrap();
        let table: Vec<Case<'_>> = vec![
            ("right", vec![right.clone()], None, true, &[]),
            ("none", vec![], None, false, &[]),
            (
                "a stranger's",
                vec![foreign.clone()],
                None,
                false,
                &[Refusal::NoKey],
            ),
            (
                "another image's",
                vec![moved.clone()],
                None,
                false,
                &[Refusal::OtherImage],
            ),
            (
                "of another document",
                vec![swapped],
                None,
                false,
                &[Refusal::NoKey],
            ),
            (
                "no base64",
                vec![garbled.clone()],
                None,
                false,
                &[Refusal::NotBase64],
            ),
            (
                "no document",
                vec![untyped],
                None,
                false,
                &[Refusal::NoPayload],
            ),
            (
                "one of several",
                vec![foreign, garbled, moved, right.clone()],
                None,
                true,
                &[Refusal::NoKey, Refusal::OtherImage, Refusal::NotBase64],
            ),
            ("its index's", vec![listed.clone()], Some(&index), true, &[]),
            (
                "its own beside an index",
                vec![right],
                Some(&index),
                false,
                &[Refusal::OtherImage],
            ),
            (
                "an index without it",
                vec![listed],
                Some(r#"{"manifests":[]}"#),
                false,
                &[Refusal::OtherImage],
            ),
        ];
        for (what, signatures, index, counts, refusals) in table {
            let proof = Proof {
                signatures,
                index: index.map(str::to_owned),
            };
            let (signers, said) = proof.signers(&image, &[&key]);
            assert_eq!(signers.contains(&key.id), counts, "{kind:?}: {what}");
            assert_eq!(
                said.into_iter().collect::<Vec<_>>(),
                refusals,
                "{kind:?}: {what}"
            );
            assert!(!proof.signers(&image, &[]).0.contains(&strange.id));
        }
    }
}

#[test]
fn of_many_signatures_those_of_an_image_are_kept() {
    let (image, other) = (Digest::of(b"image"), Digest::of(b"other"));
    let index = listing(&image);
    let named = |digest: &Digest| Signature::new(&payload(digest), "x").unwrap();
    let (own, of_index) = (named(&image), named(&Digest::of(index.as_bytes())));
    let both = [named(&other), of_index.clone(), own.clone()];
    let found = |all: &[Signature]| Proof::of(&image, Some(index.clone()), all);
    assert_eq!(found(&both).signatures, [own]);
    assert_eq!(found(&both).index, None);
    assert_eq!(found(&both[..2]).signatures, [of_index]);
    assert_eq!(found(&both[..2]).index, Some(index.clone()));
    let large = vec![b' '; usize::try_from(MAX_PAYLOAD).unwrap() + 1];
    assert_eq!(Signature::new(&large, ""), Err(Refusal::TooLarge));
    assert_eq!(
        Signature::new(b"{}", &"A".repeat(4096)),
        Err(Refusal::TooLarge)
    );
    assert_eq!(Signature::new(b"\xff", ""), Err(Refusal::NoPayload));
}

#[test]
fn a_wrong_rule_is_refused_with_what_is_wrong() {
    let (good, dir) = (Signer::new(&CURVE), temp());
    let odd = Signer::new(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]);
    let written = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let pem = fs::read_to_string(good.public()).unwrap();
    let secret = fs::read_to_string(good.file("key")).unwrap();
    let keyed = |path: PathBuf| SignatureRule {
        keys: vec![path],
        ..SignatureRule::default()
    };
    let table = [
        (rule(&[], &[], &[]), "`keys` names 1 to"),
        (keyed(dir.path().join("missing")), "No such file"),
        (keyed(written("text", "hello")), "not one public key"),
        (
            keyed(written("two", &format!("{pem}{pem}"))),
            "not one public key",
        ),
        (
            keyed(written("secret", &secret)),
            "`PRIVATE KEY`, not a `PUBLIC KEY`",
        ),
        (keyed(odd.public()), "its kind is not known"),
        (
            rule(&[], &["team"], &[&good]),
            "no beginning of a whole name",
        ),
        (
            rule(&[], &["r.example/app:1"], &[&good]),
            "no beginning of a whole name",
        ),
        (
            rule(&[], &["R.example/app"], &[&good]),
            "no beginning of a whole name",
        ),
    ];
    for (bad, words) in table {
        let error = Policy::load(&[rule(&[], &[], &[&good]), bad])
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(words) && error.contains("number 2"),
            "{words}: {error}"
        );
        assert!(!error.contains("BEGIN"), "{error}");
    }
}

#[test]
fn rules_hold_by_namespace_and_by_the_beginning_of_names() {
    let (team, all) = (Signer::new(&CURVE), Signer::new(&CURVE));
    let rules = [
        rule(&["prod"], &["r.example/team"], &[&team]),
        rule(&["bank"], &[], &[&all]),
        rule(&["prod"], &["r.example/team/vault"], &[&all]),
        rule(&["hub"], &["docker.io/acme"], &[&all]),
    ];
    let policy = Policy::load(&rules).unwrap();
    let (team, all) = (team.key().id, all.key().id);
    let table: [(Option<&str>, &str, &[&Digest], bool); 14] = [
        (Some("prod"), "r.example/team/app:1", &[], false),
        (Some("prod"), "r.example:443/team/app:1", &[], false),
        (Some("prod"), "r.example/team/app:1", &[&team], true),
        (Some("prod"), "r.example/team/app:1", &[&all], false),
        (Some("prod"), "r.example/teams/app:1", &[], true),
        (Some("prod"), "r.example/team:1", &[], false),
        (Some("prod"), "r.example/team/vault:1", &[&team], false),
        (Some("prod"), "r.example/team/vault:1", &[&team, &all], true),
        (Some("dev"), "r.example/team/app:1", &[], true),
        (Some("bank"), "docker.io/library/nginx:1", &[], false),
        (Some("bank"), "docker.io/library/nginx:1", &[&all], true),
        (Some("hub"), "registry-1.docker.io/acme/app:1", &[], false),
        (None, "r.example/team/app:1", &[], false),
        (None, "r.example/team/app:1", &[&all], true),
    ];
    for (namespace, name, signers, met) in table {
        let signers = signers.iter().map(|id| (*id).clone()).collect();
        let demand = policy.demand(namespace, name);
        assert_eq!(demand.is_met(&signers), met, "{namespace:?} {name}");
    }
}
