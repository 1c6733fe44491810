//! Docker's credential helpers: programs that give out a registry's credentials one at a time, so
//! that no file holds them. Owns running one, bounded in time and output. What it says is secret and
//! is told to nobody.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::access::Credentials;

const PREFIX: &str = "docker-credential-";
/// It may ask a cloud; a pull waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_OUTPUT: u64 = 64 * 1024;
/// What Docker calls its own registry here.
const HUB: &str = "https://index.docker.io/v1/";
/// How a helper says that it knows nothing of a registry.
const NONE: &[u8] = b"credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Given {
    username: String,
    secret: String,
}

/// Whether a name can be a helper's: it becomes part of a program's name.
pub(super) fn is_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !name.is_empty() && name.bytes().all(word)
}

/// Asks a helper for a registry's credentials. An error says what is wrong without quoting it.
pub(super) async fn ask(name: &str, registry: &str) -> Result<Option<Credentials>, String> {
    let program = format!("{PREFIX}{name}");
    let told = |what: &str| format!("credential helper `{program}` {what}");
    match timeout(PATIENCE, run(&program, registry)).await {
        Err(_) => Err(told("did not answer in time")),
        Ok(Err(e)) => Err(told(&format!("cannot be asked: {e}"))),
        Ok(Ok((_, said))) if said.len() as u64 > MAX_OUTPUT => Err(told("says too much")),
        Ok(Ok((true, said))) => {
            let given: Given =
                serde_json::from_slice(&said).map_err(|_| told("does not answer as one"))?;
            Ok(Some(Credentials {
                username: given.username,
                password: given.secret,
            }))
        }
        Ok(Ok((false, said))) if said.starts_with(NONE) => Ok(None),
        Ok(Ok((false, _))) => Err(told("failed")),
    }
}

/// Whether it ended well, and what it said.
async fn run(program: &str, registry: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let server = if registry == "docker.io" {
        HUB
    } else {
        registry
    };
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read says why by how it ends.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    }
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_OUTPUT + 1).read_to_end(&mut said).await?;
    }
    if said.len() as u64 > MAX_OUTPUT {
        // Dropping it ends it.
        return Ok((false, said));
    }
    Ok((child.wait().await?.success(), said))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_helper_is_asked_and_bounded() {
        let dir = crate::image::testing::temp();
        let helper = |name: &str, script: &str| {
            let path = dir.path().join(format!("{PREFIX}{name}"));
            std::fs::write(&path, format!("#!/bin/sh\nread server\n{script}\n")).expect("written");
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, mode).expect("executable");
            path.to_str().expect("text").to_owned()
        };
        let good = helper(
            "good",
            r#"echo "{\"ServerURL\":\"$server\",\"Username\":\"$server\",\"Secret\":\"s3cret\"}""#,
        );
        let (well, said) = run(&good, "docker.io").await.expect("runs");
        let given: Given = serde_json::from_slice(&said).expect("JSON");
        assert!(well && given.username == HUB && given.secret == "s3cret");

        let (well, said) = run(&helper("talks", "exec cat /dev/zero"), "r")
            .await
            .expect("runs");
        assert!(!well && said.len() as u64 == MAX_OUTPUT + 1);

        let none = helper(
            "none",
            "echo 'credentials not found in native keychain'; exit 1",
        );
        let (well, said) = run(&none, "r").await.expect("runs");
        assert!(!well && said.starts_with(NONE));

        let error = ask("no-such-helper", "r")
            .await
            .expect_err("it is not there");
        assert!(
            error.contains("`docker-credential-no-such-helper` cannot be asked"),
            "{error}"
        );
    }

    #[test]
    fn a_helpers_name_is_no_path() {
        for good in ["ecr-login", "gcloud", "osx_keychain.2"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "../x", "a/b", "a b", "a\0"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
