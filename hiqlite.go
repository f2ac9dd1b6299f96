// Package hiqlite is a replicated SQLite for database/sql: every node of a
// cluster holds the whole database, writes are acknowledged when a majority of
// the nodes has them on disk, and reads are reads of the local SQLite.
//
// Most programs use it through the driver, and nothing else:
//
//	import _ "github.com/hiqlite/hiqlite/driver"
//
//	db, err := sql.Open("hiqlite", "data?node_id=1&nodes=1=a:8200/a:8100,2=b:8200/b:8100,3=c:8200/c:8100")
//
// This package is what stands behind it, for programs that want to hold the
// node in their hands ([Open]), and what database/sql has no name for: [Batch],
// [RunTx], [Migrate], [WithConsistency] and the errors. The packages kv, lock
// and pubsub, beside it, work on what [From] and [Open] return.
//
// # Guarantees
//
//   - A write that returned without an error is on the disks of a majority.
//   - It was applied exactly once, whichever nodes died meanwhile.
//   - Reads on the node that it was written through see it; others soon, and at
//     once with [Linearizable].
//   - A write that returned an error was not applied and never will be, unless
//     the error is [ErrOutcomeUnknown]. (INSERT OR FAIL and RAISE(FAIL) keep the
//     rows before the failing one, as SQLite defines them.)
//   - [database/sql.DB.Ping] says that the node runs, not that there is a leader:
//     reads do without one, and so does a probe that must not restart what waits
//     for the others. Writes then fail with [ErrNoLeader] when their time is over.
//     [Node.Ready] and a [Linearizable] read ask for one.
//   - All nodes hold the same rows, whatever SQL was run: random() and
//     datetime('now') are computed alike everywhere.
//   - random() and randomblob() in a write cannot be guessed from other values,
//     but whoever reads the log, or a backup of it, can compute them: its seed, of
//     256 bits, stands there. Make secrets, as tokens of sessions, in the program
//     by crypto/rand and bind them, instead of hex(randomblob(16)). In reads the
//     numbers stand nowhere.
//
// # Long writes and contexts
//
// A statement under a context that has ended does not start, on a [database/sql.Conn]
// and after BEGIN as a text too; ROLLBACK alone does. What is in the log cannot be
// called back, and a long write keeps all others waiting. So a write is first tried
// within 12.5 million steps of SQLite's virtual machine, about a second; if that is
// not enough it is undone on all nodes, others have their turn, and it is tried with
// four times as many, up to [Config].MaxSteps (200 million, max_steps in the DSN), as
// long as its context lasts: a runaway ends within its last try. Statements of a
// transaction run on its own node only until Commit, and end with their context.
//
// # Transactions
//
// [database/sql.DB.BeginTx] begins a real transaction: reads in it see its
// writes, errors come where they happen, and it is serializable, which satisfies
// every weaker isolation level: all of database/sql's are accepted. With
// sql.LevelLinearizable one that only reads, or is deferred, also sees all that was
// acknowledged anywhere before its first read; others do anyway. BEGIN, COMMIT,
// ROLLBACK and savepoints as SQL texts on one connection do the same.
//
//   - The cluster has one writer at a time, as SQLite has. Others, plain writes
//     too, wait for their turn, first in first out over all nodes, and for as
//     long as busy_timeout; then it is SQLITE_BUSY. So keep transactions short.
//   - Nobody sees anything of it before Commit has returned or is about to.
//     Commit is one write: applied once and completely, or not at all.
//   - It survives the loss of the leader. If its own node is not heard of for
//     [Config].LeaseTTL while others wait, they go on, and Commit returns
//     [ErrTxExpired]: nothing was applied. [RunTx] runs it again.
//   - Commit returns [ErrOutcomeUnknown] only if the context of BeginTx ended, no
//     majority was there for [Config].Timeout, or the node was closed, while the
//     commit was on its way; the loss of few nodes makes it late.
//   - All that it writes has to fit into about 8 MiB: the statement with which it
//     does not fails with [ErrTooLarge].
//   - BEGIN as a text belongs to its connection: run it, and what follows, on one
//     sql.Conn. Left open there it holds the others up until tx_timeout. When the
//     connection goes back to its pool, it is rolled back: by sql.Conn.Close, and
//     at once by sql.DB.Exec("BEGIN"), which therefore does nothing, so that the
//     COMMIT that follows fails.
//   - One that has expired fails with ErrTxExpired until it is ended: by ROLLBACK,
//     COMMIT, the end of its sql.Tx, the connection's return to its pool or, of a
//     BEGIN as a text whose program was told, by the next BEGIN.
//   - With sql.TxOptions.ReadOnly it is a snapshot of this node's rows, which
//     takes no part in this: use it for all that only read. Others wait for a
//     default transaction from its beginning on, even if it comes to write nothing:
//     it could not promise otherwise that nothing changes between its reads and
//     its first write. A snapshot takes microseconds to begin, not a round trip. It holds back SQLite's write-ahead log: if that
//     grows beyond 1 GiB, the oldest such snapshot is ended.
//
// # SQLite
//
// Values, types, error texts and codes are those of modernc.org/sqlite, with
// these exceptions:
//
//   - Foreign keys are enforced unless a connection switches them off.
//   - A wrong number of arguments is an error, in scripts too. Named ones that a
//     statement does not have are ignored.
//   - CREATE TABLE ... AS is refused if its SELECT returns more than five columns
//     of one name, as * of a wide join does: SQLite names the others at random.
//   - last_insert_rowid() is not changed by what R-Tree and FTS5 insert into their
//     own tables.
//   - A script of several statements is atomic, unless it says BEGIN or COMMIT
//     itself; then what it began is rolled back if it fails.
//   - A script has a result set for each of its statements that has columns, in
//     their order: see [sql.Rows.NextResultSet]. QueryRow reads the first of them;
//     modernc.org/sqlite returns one, of the last statement. A PRAGMA that sets
//     something has none in a script. A script that does more than read has run
//     to its end before its first row is seen. One that reads runs each statement
//     when its turn comes: an error of a later one is NextResultSet's, and who
//     closes the rows before does not run it. Its statements see the same rows,
//     unless the connection has TEMP objects; in a transaction they see what this
//     has written in between.
//   - After OR ROLLBACK, RAISE(ROLLBACK) or an interrupted write a transaction is
//     over, and its statements fail until ROLLBACK, COMMIT, another BEGIN or the
//     end of the sql.Tx; SQLite would run them one by one.
//   - A statement that fails in a transaction has changed nothing. SQLite keeps
//     what it wrote before an aggregate overflowed, a virtual table refused its
//     argument (json_each of what is no JSON) or a STRICT column its value.
//   - PRAGMA defer_foreign_keys=OFF does not forget what is violated already.
//   - Times are written in UTC, in one form whose order is that of the times, not
//     as [time.Time.String] has them; see ConnConfig.TimeFormat. All forms that
//     SQLite and its drivers write are read, in columns declared as DATETIME(6)
//     or TIMESTAMP WITH TIME ZONE too. CURRENT_TIMESTAMP writes no zone: compare
//     it by datetime(column). Texts of expressions, such as max(begins), are
//     strings unless ConnConfig.TextToTime is set: their type is not known.
//   - The scan type of NULL, and where there is no row, follows the declared
//     type. Whether a column can be NULL is not known.
//   - 'localtime' and 'utc' are in the cluster's zone, see Config.Timezone, which
//     is UTC unless told otherwise; never in the process's.
//   - An empty blob is not nil.
//   - LastInsertId is that of the row which the statement itself has inserted, or,
//     an upsert, updated; 0 if it did neither, where SQLite repeats an earlier
//     statement's, which may be another table's. last_insert_rowid() is SQLite's.
//   - LastInsertId and RowsAffected of a statement that changes the schema are 0.
//   - changes() and last_insert_rowid() keep their values over a statement that
//     fails.
//   - PRAGMAs that tune a connection are answered and do nothing: journal_mode is
//     wal. busy_timeout, 10000 unless told otherwise, bounds the wait for
//     transactions. Those that change what statements mean travel with the
//     connection's statements to all nodes. docs/sql.md has a table of all.
//   - PRAGMA foreign_keys takes effect inside a transaction too, until it ends.
//   - PRAGMA writable_schema lets in what dumps of full-text tables and R-Trees
//     insert, and no other change of sqlite_schema.
//   - Refused are ATTACH, TEMP virtual tables, load_extension, PRAGMA count_changes,
//     schema_version and encoding, texts with a NUL, the rowid 2^63-1, and writes
//     that read what is one node's own: dbstat, sqlite_offset(), page counts and the table
//     sqlite_hiqlite, in which the replica keeps its index.
//
// TEMP tables, views, triggers and indexes belong to one connection of the pool,
// as with every driver of SQLite: run what uses them on one sql.Conn or in one
// transaction, and drop them in the end, since they live until the connection is
// closed, which the pool decides. They are in memory, not replicated, and 4 MiB at
// most. Statements and read-only transactions that change nothing else run on this
// node alone and wait for nobody. A write to ordinary tables that uses them, or
// fires a TEMP trigger, is a transaction that brings all of the connection's TEMP
// objects to all nodes: keep them small then. In a transaction they share its
// fate; after [ErrOutcomeUnknown] they are as before it.
//
// X REGEXP Y is Go's package regexp. A program's own functions, aggregates, window
// functions and collations are given by [Config].Functions and Collations: see
// [Function].
//
// Replicas compute alike on one architecture. Clusters that mix amd64 and arm64
// may differ in the last bit of transcendental functions: do not.
//
// Reading the source: config.go, node.go, conn.go, stmt.go, tx.go, rows.go,
// batch.go and value.go are the nouns of the driver, internal/node is the runtime
// behind them, and docs/ARCHITECTURE.md leads through all packages.
package hiqlite
