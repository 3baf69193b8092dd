//! Acknowledged writes a second on the API, every one of them durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::summary;
use crate::cluster::{Brain, free_port};

/// Creates tenants from `clients` connections at a time, for several numbers of clients.
///
/// # Errors
/// When the brain can't be reached.
pub fn run(runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let address = format!("127.0.0.1:{}", free_port());
    // What is measured is the store, not the brake on callers.
    let rates = "[api]\nrequests_per_token = 1000000\nrequests_per_address = 1000000";
    let brain = Brain::start_with(&dir.path().join("brain"), None, &address, rates);
    let (client, base, token) = brain.http()?;
    let next = Arc::new(AtomicU64::new(0));
    let fsync = fsync_ms(dir.path())?;
    println!("writes: one fsync of 4 KiB on this disk takes {fsync:.2} ms (median)");
    for clients in [1usize, 8, 64] {
        let end = Instant::now() + Duration::from_secs(5);
        let tasks: Vec<_> = (0..clients)
            .map(|_| {
                let (client, base, token, next) =
                    (client.clone(), base.clone(), token.clone(), Arc::clone(&next));
                runtime.spawn(async move {
                    let mut took = Vec::new();
                    while Instant::now() < end {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let began = Instant::now();
                        let answer = client
                            .post(format!("{base}/v1/tenants"))
                            .bearer_auth(&token)
                            .json(&serde_json::json!({ "name": format!("t{n}") }))
                            .send()
                            .await?;
                        anyhow::ensure!(answer.status().is_success(), "{}", answer.text().await?);
                        took.push(began.elapsed().as_secs_f64() * 1e3);
                    }
                    anyhow::Ok(took)
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(runtime.block_on(task)??);
        }
        let rate = all.len() as f64 / 5.0;
        let (p50, p99) = summary(all);
        println!(
            "writes: {clients} clients: {rate:.0} acknowledged a second, p50 {p50:.1} ms, p99 {p99:.1} ms"
        );
    }
    Ok(())
}

fn fsync_ms(dir: &std::path::Path) -> anyhow::Result<f64> {
    use std::io::Write;
    let mut file = std::fs::File::create(dir.join("probe"))?;
    let mut took = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(summary(took).0)
}
