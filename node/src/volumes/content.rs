//! What configs and secrets give an instance: the files of a volume and the values of variables.
//! Pure but for the key that opens secrets.

use std::collections::BTreeMap;

use netfabric::identity::{Label, Plain, Vault};
use scheduler::model::{EnvVar, Name, Revision, Sealed, VolumeSource};
use scheduler::registry::State;

use super::{Kind, VolumeError, object};
use crate::runtime::SecretEnv;

/// The files of one volume.
#[derive(Debug)]
pub(super) struct Content {
    pub kind: Kind,
    /// The version of the object they are of.
    pub version: u64,
    pub files: BTreeMap<String, Plain>,
}

/// Variables that come from configs, and those nobody may see.
#[derive(Debug, Default)]
pub(super) struct Environment {
    pub plain: Vec<(String, String)>,
    pub secret: SecretEnv,
}

/// The version of what a volume shows, without reading it; `None` when there is none.
pub(super) fn version(state: &State, namespace: &Name, source: &VolumeSource) -> Option<u64> {
    match source {
        VolumeSource::ConfigMap { name, .. } => {
            let key = object(namespace, name).ok()?;
            state.configs.get(&key).map(|c| c.version)
        }
        VolumeSource::Secret { name, .. } => {
            let key = object(namespace, name).ok()?;
            state.secrets.get(&key).map(|s| s.version)
        }
        _ => None,
    }
}

/// An object's version and its files.
type Found = Result<(u64, BTreeMap<String, Plain>), VolumeError>;

/// The files of a config's or secret's volume, of which one that is optional has none until there is
/// such an object; `None` for other volumes.
pub(super) fn files(
    state: &State,
    vault: Option<&Vault>,
    namespace: &Name,
    source: &VolumeSource,
) -> Result<Option<Content>, VolumeError> {
    let (kind, name, optional) = match source {
        VolumeSource::ConfigMap { name, optional } => (Kind::Config, name, *optional),
        VolumeSource::Secret { name, optional } => (Kind::Secret, name, *optional),
        _ => return Ok(None),
    };
    let key = object(namespace, name)?;
    let found: Option<Found> = match kind {
        Kind::Config => state.configs.get(&key).map(|config| {
            let files = config.data.iter();
            let files = files.map(|(k, v)| (k.clone(), Plain::from(v.0.clone())));
            Ok((config.version, files.collect()))
        }),
        Kind::Secret => state.secrets.get(&key).map(|secret| {
            let open = |(k, sealed): (&String, &Sealed)| {
                let label = Label {
                    secret: &key,
                    key: k,
                };
                Ok((k.clone(), unsealed(vault, label, sealed)?))
            };
            let files = secret.data.iter().map(open);
            Ok((secret.version, files.collect::<Result<_, VolumeError>>()?))
        }),
    };
    match found.transpose()? {
        Some((version, files)) => Ok(Some(Content {
            kind,
            version,
            files,
        })),
        None if optional => Ok(Some(Content {
            kind,
            version: 0,
            files: BTreeMap::new(),
        })),
        None => Err(VolumeError::Missing {
            kind,
            name: name.clone(),
        }),
    }
}

fn unsealed(
    vault: Option<&Vault>,
    label: Label<'_>,
    sealed: &Sealed,
) -> Result<Plain, VolumeError> {
    let wrong = |why: String| VolumeError::Sealed {
        name: label.secret.name.to_string(),
        why,
    };
    let vault = vault.ok_or_else(|| wrong("it holds no key for secrets".to_owned()))?;
    vault
        .open(label, sealed)
        .map_err(|error| wrong(error.to_string()))
}

/// The variables of a revision whose values stand elsewhere.
pub(super) fn environment(
    state: &State,
    vault: Option<&Vault>,
    revision: &Revision,
) -> Result<Environment, VolumeError> {
    let mut all = Environment::default();
    let env = revision.spec.main().map(|c| c.env.as_slice());
    for var in env.unwrap_or_default() {
        let (kind, place) = match (&var.secret, &var.config) {
            (Some(place), _) => (Kind::Secret, place),
            (None, Some(place)) => (Kind::Config, place),
            (None, None) => continue,
        };
        let Some(value) = value(state, vault, &revision.key.namespace, kind, place, var)? else {
            continue;
        };
        let text = variable(kind, place, value.bytes())?;
        match kind {
            Kind::Secret => all.secret.push(var.name.clone(), text),
            Kind::Config => all.plain.push((var.name.clone(), text)),
        }
    }
    Ok(all)
}

fn value(
    state: &State,
    vault: Option<&Vault>,
    namespace: &Name,
    kind: Kind,
    place: &str,
    var: &EnvVar,
) -> Result<Option<Plain>, VolumeError> {
    let (name, key) = place.split_once(':').unwrap_or((place, ""));
    let of = object(namespace, name)?;
    let (known, value) = match kind {
        Kind::Config => {
            let config = state.configs.get(&of);
            let value = config.and_then(|c| c.data.get(key));
            (config.is_some(), value.map(|v| Plain::from(v.0.clone())))
        }
        Kind::Secret => {
            let secret = state.secrets.get(&of);
            let sealed = secret.and_then(|s| s.data.get(key));
            let label = Label { secret: &of, key };
            let value = sealed.map(|sealed| unsealed(vault, label, sealed));
            (secret.is_some(), value.transpose()?)
        }
    };
    if value.is_some() || var.optional {
        return Ok(value);
    }
    let name = name.to_owned();
    Err(if known {
        VolumeError::NoKey {
            kind,
            name,
            key: key.to_owned(),
        }
    } else {
        VolumeError::Missing { kind, name }
    })
}

fn variable(kind: Kind, place: &str, bytes: &[u8]) -> Result<String, VolumeError> {
    let wrong = |why| {
        let (name, key) = place.split_once(':').unwrap_or((place, ""));
        VolumeError::NoVariable {
            kind,
            name: name.to_owned(),
            key: key.to_owned(),
            why,
        }
    };
    if bytes.contains(&0) {
        return Err(wrong("it holds a zero byte; mount it as a file"));
    }
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned)
        .map_err(|_| wrong("it is no text; mount it as a file"))
}

#[cfg(test)]
mod tests {
    use scheduler::model::{
        Blob, Config, Container, ImagePin, RevisionKey, RevisionSpec, RevisionState, Secret,
        ServiceKey, UnixMs,
    };

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn revision(env: Vec<EnvVar>) -> Revision {
        let service = ServiceKey {
            namespace: Name::default_namespace(),
            name: name("web"),
        };
        let container = Container {
            env,
            ..Container::default()
        };
        Revision {
            key: RevisionKey::of(&service, 1).unwrap(),
            service,
            generation: 1,
            created: UnixMs(0),
            spec: RevisionSpec {
                containers: vec![container],
                ..RevisionSpec::default()
            },
            image: ImagePin {
                reference: String::new(),
                digest: String::new(),
            },
            state: RevisionState::Pending,
        }
    }

    fn state(vault: &Vault) -> State {
        let mut state = State::default();
        let namespace = Name::default_namespace();
        let (app, db) = (
            object(&namespace, "app").unwrap(),
            object(&namespace, "db").unwrap(),
        );
        let blob = |bytes: &[u8]| Blob(bytes.to_vec());
        let config = Config {
            key: app.clone(),
            data: [
                ("level".to_owned(), blob(b"debug")),
                ("raw".to_owned(), blob(b"\xff")),
                ("zero".to_owned(), blob(b"a\0b")),
            ]
            .into(),
            version: 3,
        };
        state.configs.insert(app, config);
        let label = Label {
            secret: &db,
            key: "url",
        };
        let sealed = vault.seal(label, 0, b"hunter2").unwrap();
        let secret = Secret {
            key: db.clone(),
            data: [("url".to_owned(), sealed)].into(),
            version: 4,
        };
        state.secrets.insert(db, secret);
        state
    }

    fn var(secret: Option<&str>, config: Option<&str>, optional: bool) -> EnvVar {
        EnvVar {
            name: "V".to_owned(),
            value: String::new(),
            secret: secret.map(str::to_owned),
            config: config.map(str::to_owned),
            optional,
        }
    }

    #[test]
    fn variables_are_found_or_their_absence_is_named() {
        let vault = Vault::create().unwrap();
        let state = state(&vault);
        let of = |var: EnvVar| environment(&state, Some(&vault), &revision(vec![var]));
        let plain = of(var(None, Some("app:level"), false)).unwrap().plain;
        assert_eq!(plain, [("V".to_owned(), "debug".to_owned())]);
        let given = of(var(Some("db:url"), None, false)).unwrap();
        assert!(given.plain.is_empty());
        let secrets: Vec<_> = given.secret.iter().collect();
        assert_eq!(secrets, [("V", "hunter2")]);
        assert!(!format!("{given:?}").contains("hunter2"));
        for (var, said) in [
            (
                var(Some("db:uri"), None, false),
                "secret `db` has no key `uri`",
            ),
            (
                var(Some("no:url"), None, false),
                "secret `no` does not exist",
            ),
            (
                var(None, Some("app:nope"), false),
                "config `app` has no key `nope`",
            ),
            (var(None, Some("app:raw"), false), "no text"),
            (var(None, Some("app:zero"), true), "zero byte"),
        ] {
            let error = of(var).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        for absent in [
            var(Some("db:uri"), None, true),
            var(None, Some("no:x"), true),
        ] {
            let given = of(absent).unwrap();
            assert!(given.plain.is_empty() && given.secret.iter().next().is_none());
        }
        let keyless = environment(
            &state,
            None,
            &revision(vec![var(Some("db:url"), None, true)]),
        );
        assert_eq!(keyless.unwrap_err().reason().code, "Volume");
    }

    #[test]
    fn files_are_all_the_keys_of_an_object() {
        let vault = Vault::create().unwrap();
        let state = state(&vault);
        let of = |source| files(&state, Some(&vault), &Name::default_namespace(), &source);
        let secret = |name: &str, optional| VolumeSource::Secret {
            name: name.to_owned(),
            optional,
        };
        let content = of(secret("db", false)).unwrap().unwrap();
        assert_eq!((content.kind, content.version), (Kind::Secret, 4));
        assert_eq!(content.files["url"].bytes(), b"hunter2");
        let none = of(secret("no", true)).unwrap().unwrap();
        assert!(none.version == 0 && none.files.is_empty());
        let error = of(secret("no", false)).unwrap_err();
        assert_eq!(error.reason().code, "BadSecret");
    }
}
