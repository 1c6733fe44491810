//! `cert add`, `cert ls`, `cert rm`. Keys go in and never come out.

use std::path::Path;

use http::Method;
use netfabric::wire::api::{CertificateChange, CertificateView};
use scheduler::model::Certificate;

use super::confirm;
use crate::args::CertCommand;
use crate::client::REGISTRY_ANSWER;
use crate::failure::Failure;
use crate::files;
use crate::session::Session;

pub async fn run(command: CertCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        CertCommand::Ls => {
            let all = session.client.get("/v1/certificates").await;
            let all: Vec<CertificateView> = all.map_err(Failure::from)?;
            session.out.list(&all, false)
        }
        CertCommand::Add { name, cert, key } => {
            let change = CertificateChange {
                chain: pem(&cert)?,
                key: pem(&key)?,
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

fn pem(path: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(files::read(path, Certificate::MAX_PEM)?);
    Ok(text.map_err(|_| Failure::usage(format!("{} is no text (PEM)", path.display())))?)
}
