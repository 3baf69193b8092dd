//! Real databases under moves: SQLite and PostgreSQL, written to all the time.

use std::collections::HashMap;
use std::time::Duration;

use berth_tests::acknowledged::Acknowledged;
use berth_tests::fleet::Fleet;
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;

const SOON: Duration = Duration::from_secs(90);
/// Moves of each.
const MOVES: usize = 10;

/// Each row has its writer and when it was written, seconds since 1970. What is acknowledged has been committed.
const SQLITE: &str = "trap 'exit 0' TERM; w=$(cut -d' ' -f1 /proc/uptime); \
    sqlite3 /data/db 'PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, w TEXT, at REAL, pad TEXT)'; \
    while true; do sqlite3 -cmd '.timeout 5000' /data/db \"INSERT INTO t(w, at, pad) VALUES('$w', \
    (julianday('now') - 2440587.5) * 86400, hex(randomblob(500))) RETURNING 'ack ' || n || ' ' || w\"; sleep 0.02; done";

const POSTGRES: &str = "export PGDATA=/data/pg PGHOST=/tmp PGUSER=postgres PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); \
    as='/bin/setpriv --reuid postgres --regid postgres --clear-groups'; mkdir -p $PGDATA; chown postgres:postgres $PGDATA; \
    [ -s $PGDATA/global/pg_control ] || $as initdb -k --no-locale -E UTF8 -A trust --wal-segsize 4; \
    $as postgres -c listen_addresses= -c unix_socket_directories=/tmp -c shared_buffers=16MB -c dynamic_shared_memory_type=mmap \
    -c max_wal_size=64MB -c min_wal_size=8MB & pg=$!; trap 'kill -INT $pg; wait $pg; exit 0' TERM; \
    until psql -Xqc 'CREATE TABLE IF NOT EXISTS t(n bigserial PRIMARY KEY, w text, at float8 DEFAULT extract(epoch FROM clock_timestamp()), \
    pad text)'; do sleep 0.1; done; w=$(cut -d' ' -f1 /proc/uptime); \
    while true; do psql -XAtqc \"INSERT INTO t(w, pad) VALUES('$w', repeat(md5(random()::text), 30)) RETURNING 'ack ' || n || ' ' || w\"; \
    sleep 0.02; done";

/// How one of them is asked.
struct Database {
    name: &'static str,
    ask: &'static str,
    check: &'static str,
    sound: &'static str,
}

const DATABASES: [Database; 2] = [
    Database {
        name: "sqlite",
        ask: "sqlite3 -cmd '.timeout 5000' -separator ' ' /data/db 'SELECT n, w, at FROM t ORDER BY n'",
        check: "sqlite3 -cmd '.timeout 5000' /data/db 'PRAGMA integrity_check'",
        sound: "ok",
    },
    Database {
        name: "postgres",
        ask: "psql -XAtq -F ' ' -h /tmp -U postgres -c 'SELECT n, w, at FROM t ORDER BY n'",
        check: "pg_amcheck -h /tmp -U postgres --install-missing --heapallindexed --parent-check postgres && \
            psql -XAtq -h /tmp -U postgres -c 'SELECT sum(checksum_failures) FROM pg_stat_database'",
        sound: "0",
    },
];

fn start(f: &Fleet, name: &str, script: &str) {
    let mount = format!("{name}:/data:size=300MiB");
    let mut args = vec!["run", "databases:1", "--name", name, "-d", "-v", &mount];
    args.extend(["--memory", "192MiB", "--disk", "64MiB", "--cpus", "0.5"]);
    args.extend(["--", "sh", "-c", script]);
    f.brain.berth(&args);
}

fn ask(f: &Fleet, name: &str, script: &str) -> String {
    let script = format!("PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); {script}");
    let asked = || f.brain.try_berth(&["exec", name, "sh", "-c", &script]);
    let answer = eventually(SOON, || {
        let out = asked();
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    });
    answer.unwrap_or_else(|| {
        panic!(
            "{name}: {:?}\n{}\n{}",
            asked(),
            f.brain.berth(&["ps"]),
            String::from_utf8_lossy(&f.brain.try_berth(&["logs", name]).stderr)
        )
    })
}

/// Its rows: number, writer, when.
fn rows(f: &Fleet, database: &Database) -> Vec<(u64, String, f64)> {
    let text = ask(f, database.name, database.ask);
    let row = |line: &str| {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("{line:?}"));
        let number = word().parse().expect("number");
        (number, word().to_owned(), word().parse().expect("time"))
    };
    text.lines().map(row).collect()
}

/// Waits until a writer that is not this one has written some rows; who that is.
fn next_writer(f: &Fleet, database: &Database, before: &str) -> String {
    let writer = eventually(SOON, || {
        let rows = rows(f, database);
        let writer = rows.last()?.1.clone();
        let its = rows.iter().filter(|row| row.1 == writer).count();
        (writer != before && its > 20).then_some(writer)
    });
    writer.unwrap_or_else(|| panic!("{} does not go on: {}", database.name, f.brain.berth(&["ps"])))
}

#[test]
fn r2_sqlite_and_postgresql_move_while_they_are_written_to_and_lose_nothing_that_was_acknowledged() {
    let f = Fleet::with_volumes(2, 2 << 30);
    let image = berth_tests::database_image().display().to_string();
    f.brain.berth(&["image", "load", &image, "--name", "databases:1"]);
    start(&f, "sqlite", SQLITE);
    start(&f, "postgres", POSTGRES);
    f.brain.wait_running(2, 90);
    let acknowledged = DATABASES.map(|database| Acknowledged::follow(&f, database.name));
    let mut writers = DATABASES.map(|database| next_writer(&f, &database, ""));
    for round in 0..MOVES {
        let holder = |name: &str| f.brain.json(&["volume", "inspect", name])["node_name"].clone();
        let there = DATABASES.map(|database| {
            let to = if holder(database.name) == "h1" { "h2" } else { "h1" };
            // As soon as what is left of the move before has gone.
            let moves = || f.brain.try_berth(&["volume", "move", database.name, to, "-d"]);
            let begun = eventually(SOON, || moves().status.success().then_some(()));
            assert!(begun.is_some(), "{:?}", moves());
            to
        });
        for (n, database) in DATABASES.iter().enumerate() {
            writers[n] = next_writer(&f, database, &writers[n]);
            assert_eq!(holder(database.name), there[n], "round {round}");
        }
    }
    for (database, acknowledged) in DATABASES.iter().zip(acknowledged) {
        let name = database.name;
        assert_eq!(ask(&f, name, database.check), database.sound, "{name}");
        let acknowledged = acknowledged.all();
        let rows = rows(&f, database);
        let found: HashMap<u64, &str> = rows
            .iter()
            .map(|(number, writer, _)| (*number, writer.as_str()))
            .collect();
        for told in &acknowledged {
            let (number, writer) = told.split_once(' ').expect("number and writer");
            let row = found.get(&number.parse().expect("number")).copied();
            assert_eq!(row, Some(writer), "{name}: {told} was acknowledged and is lost");
        }
        assert!(
            acknowledged.len() > rows.len() / 2,
            "{name}: {} of {}",
            acknowledged.len(),
            rows.len()
        );
        let changes = rows.windows(2).filter(|two| two[0].1 != two[1].1);
        let mut pauses: Vec<f64> = changes.map(|two| two[1].2 - two[0].2).collect();
        pauses.sort_by(f64::total_cmp);
        assert_eq!(
            pauses.len(),
            MOVES,
            "{name}: each node's container wrote, one after the other"
        );
        eprintln!(
            "{name}: {} rows, {} heard to be acknowledged; pauses of {MOVES} moves: median {:.2} s, longest {:.2} s",
            rows.len(),
            acknowledged.len(),
            pauses[MOVES / 2],
            pauses[MOVES - 1]
        );
    }
}
