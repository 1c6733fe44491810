//! `cert add`, `cert ls`, `cert rm`. Keys go in and never come out.

use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use http::Method;
use netfabric::wire::api::{CertificateChange, CertificateView};

use super::confirm;
use crate::args::CertCommand;
use crate::client::REGISTRY_ANSWER;
use crate::failure::Failure;
use crate::session::Session;

/// What a node takes; larger files are not even read.
const PEM_BYTES: u64 = 64 * 1024;

pub async fn run(command: CertCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        CertCommand::Ls => {
            let all = session.client.get("/v1/certificates").await;
            let all: Vec<CertificateView> = all.map_err(Failure::from)?;
            session.out.list(&all, false)
        }
        CertCommand::Add { name, cert, key } => {
            let change = CertificateChange {
                chain: read(&cert)?,
                key: read(&key)?,
                if_version: None,
            };
            let path = path(&name)?;
            let sent = session
                .client
                .send(Method::PUT, &path, &change, REGISTRY_ANSWER);
            let view: CertificateView = sent.await.map_err(Failure::from)?;
            let said = || format!("certificate/{name}");
            session.out.text_or(&view, said, |_| {
                let days = view.seconds_left / 86_400;
                let hosts = view.hosts.join(", ");
                format!("certificate/{name} is served for {hosts}, {days} days to go")
            })
        }
        CertCommand::Rm { name } => {
            confirm::destructive(session, "remove certificate", &name)?;
            let removed = session.client.change(Method::DELETE, &path(&name)?).await;
            removed.map_err(Failure::from)?;
            session.out.progress(&format!("certificate/{name} removed"));
            Ok(())
        }
    }
}

/// The name stands in a path: what could mean something else there is refused here.
fn path(name: &str) -> Result<String, Failure> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.*".contains(&b);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(fine) {
        let message = format!("`{name}` is no certificate's name");
        let hint = "use letters, digits, '-', '_', '.' and '*'";
        return Err(Failure::usage(message).hint(hint));
    }
    Ok(format!("/v1/certificates/{name}"))
}

fn read(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(cannot)?;
    let mut text = String::new();
    let mut file = file.take(PEM_BYTES + 1);
    file.read_to_string(&mut text).with_context(cannot)?;
    if text.len() as u64 > PEM_BYTES {
        let message = format!("{} is larger than 64 KiB", path.display());
        return Err(Failure::usage(message).into());
    }
    Ok(text)
}
