//! Measures the Rust crate hiqlite as benchmarks/peers measures this project: three nodes
//! in one process, on one disk, over loopback without TLS, through the leader. It prints
//! one JSON object for each concurrency.
//!
//! seed-bench FOLDER SYNC CACHE_ON_DISK CONCURRENCIES SECONDS
//!
//! SYNC is immediate, immediate_async or interval_200; CACHE_ON_DISK is true or false;
//! CONCURRENCIES is a list such as 1,4,16.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hiqlite::{CacheVariants, Client, Error, Node, NodeConfig, Param};

#[derive(Debug)]
struct Cache;

impl CacheVariants for Cache {
    fn hiqlite_cache_index(&self) -> usize {
        0
    }

    fn hiqlite_cache_variants() -> &'static [(usize, &'static str)] {
        &[(0, "Cache")]
    }
}

const INSERT: &str = "INSERT INTO bench(id, ts, name) VALUES($1, $2, $3)";

fn row(id: u64) -> Vec<Param> {
    vec![Param::from(id as i64), Param::from(1_700_000_000_000i64), Param::from(format!("Name {id}"))]
}

/// Runs f in `concurrency` tasks for some seconds, and returns how often per second it
/// ran, and the median and 99th percentile of its duration in microseconds.
async fn measure<F, R>(concurrency: u64, seconds: f64, f: F) -> (f64, u128, u128)
where
    F: Fn(u64) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), Error>> + Send,
{
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let f = Arc::new(f);
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let mut tasks = Vec::new();
    for _ in 0..concurrency {
        let f = f.clone();
        tasks.push(tokio::spawn(async move {
            let mut durations = Vec::new();
            while Instant::now() < end {
                let one = Instant::now();
                f(NEXT.fetch_add(1, Ordering::Relaxed)).await.expect("an operation failed");
                durations.push(one.elapsed().as_micros());
            }
            durations
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("a task panicked"));
    }
    let elapsed = began.elapsed().as_secs_f64();
    all.sort_unstable();
    (all.len() as f64 / elapsed, all[all.len() / 2], all[all.len() * 99 / 100])
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

async fn start(folder: &str, sync: &str, cache_on_disk: bool) -> Vec<Client> {
    let nodes: Vec<Node> =
        (1..=3).map(|id| Node { id, addr_raft: free_address(), addr_api: free_address() }).collect();
    let mut starting = Vec::new();
    for id in 1..=3u64 {
        let config = NodeConfig {
            node_id: id,
            nodes: nodes.clone(),
            listen_addr_api: "127.0.0.1".into(),
            listen_addr_raft: "127.0.0.1".into(),
            data_dir: Cow::Owned(format!("{folder}/{id}")),
            wal_sync: sync.try_into().expect("the level of sync is not known"),
            cache_storage_disk: cache_on_disk,
            secret_raft: "sixteen characters".into(),
            secret_api: "sixteen characters".into(),
            ..Default::default()
        };
        std::fs::create_dir_all(format!("{folder}/{id}")).unwrap();
        starting.push(tokio::spawn(hiqlite::start_node_with_cache::<Cache>(config)));
    }
    let mut clients = Vec::new();
    for node in starting {
        clients.push(node.await.unwrap().expect("a node did not start"));
    }
    for client in &clients {
        client.wait_until_healthy_db().await;
        client.wait_until_healthy_cache().await;
    }
    clients
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, folder, sync, cache_on_disk, concurrencies, seconds] = &args[..] else {
        eprintln!("usage: seed-bench FOLDER SYNC CACHE_ON_DISK CONCURRENCIES SECONDS");
        std::process::exit(2);
    };
    let seconds: f64 = seconds.parse().expect("SECONDS is not a number");
    let clients = start(folder, sync, cache_on_disk == "true").await;
    let mut leader = clients[0].clone();
    for client in &clients {
        if client.is_leader_db().await {
            leader = client.clone();
        }
    }
    leader
        .execute("CREATE TABLE bench(id INTEGER PRIMARY KEY, ts INTEGER, name TEXT)", vec![])
        .await
        .expect("CREATE TABLE failed");
    for concurrency in concurrencies.split(',') {
        let concurrency: u64 = concurrency.parse().expect("a concurrency is not a number");
        let c = leader.clone();
        let (inserts, p50, p99) = measure(concurrency, seconds, move |id| {
            let c = c.clone();
            async move { c.execute(INSERT, row(id)).await.map(|_| ()) }
        })
        .await;
        let c = leader.clone();
        let (transactions, _, _) = measure(concurrency, seconds, move |id| {
            let c = c.clone();
            async move {
                let rows = (0..100).map(|i| (INSERT, row(id * 1000 + i + 1_000_000_000)));
                for result in c.txn(rows).await? {
                    result?;
                }
                Ok(())
            }
        })
        .await;
        let c = leader.clone();
        let (puts, put_p50, _) = measure(concurrency, seconds, move |id| {
            let c = c.clone();
            async move { c.put(Cache, format!("key{}", id % 1000), &"value", None).await }
        })
        .await;
        println!(
            "{{\"concurrency\":{concurrency},\"inserts_per_s\":{inserts:.0},\"insert_p50_us\":{p50},\"insert_p99_us\":{p99},\"tx_rows_per_s\":{:.0},\"kv_put_per_s\":{puts:.0},\"kv_put_p50_us\":{put_p50}}}",
            transactions * 100.0
        );
    }
    std::process::exit(0); // a clean end waits for ten seconds and more
}
