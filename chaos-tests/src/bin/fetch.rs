//! The image store without the daemon around it, for benchmarks: opens a store in a folder and
//! brings one image into it, unpacked by processes of that program when one is named. Everything it makes
//! is in that folder, and its caller's to remove.

use std::path::Path;

use anyhow::{Result, bail};
use node::image::{Limits, Reference, RegistryConfig, Store};

const USAGE: &str = "fetch FOLDER REFERENCE [SELVEDGED]";

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (folder, reference, unpacker) = match &words[..] {
        [folder, reference] => (folder, reference, None),
        [folder, reference, unpacker] => (folder, reference, Some(unpacker)),
        _ => bail!(USAGE),
    };
    // Fails when there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = Store::open(&Path::new(folder).join("images"), Limits::default())?;
    if let Some(unpacker) = unpacker {
        store.unpack_apart(unpacker.into());
    }
    let reference = Reference::parse(reference)?;
    let mut config = RegistryConfig::default();
    config.insecure.insert(reference.registry().to_owned());
    let image = store.pull_reference(&reference, &config, None).await?;
    println!("{}", image.pin.digest);
    Ok(())
}
