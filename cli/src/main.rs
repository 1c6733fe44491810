//! The command line `selvedge`.

mod demo;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = demo::DemoOptions {
        dir: "/var/lib/selvedge-demo".into(),
        nodes: 3,
    };
    if std::env::args().nth(1).as_deref() != Some("demo") {
        anyhow::bail!("not built yet");
    }
    if std::env::args().nth(2).as_deref() == Some("down") {
        println!("{:?}", demo::down(&options).await?);
        return Ok(());
    }
    let card = demo::up(&options, &mut |line| eprintln!("{line}")).await?;
    println!("{}", card.table());
    println!("{:?} {}", demo::next_steps(&options), options.address());
    Ok(())
}
