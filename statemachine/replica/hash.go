package replica

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"strings"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Hash returns the SHA-256 of everything that SQL can see of the database, including the
// schema and rowids, and the applied index of which it is. All replicas have the same hash
// at the same index. The meta table is left out, because replicas write its rows at
// different times.
func (r *SQL) Hash(ctx context.Context) (sum [sha256.Size]byte, index uint64, err error) {
	reader, err := r.Acquire(ctx)
	if err != nil {
		return sum, 0, err
	}
	defer reader.Release()
	// Whatever fails, the reader must not return to the pool inside a transaction.
	reader.Discard()
	conn, err := reader.currentConn()
	if err != nil {
		return sum, 0, err
	}
	conn.AsOwner(true)
	if index, err = r.pin(conn); err != nil {
		return sum, 0, err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.Interrupt()
		close(interrupted)
	})
	h := sha256.New()
	err = hashDatabase(h, conn)
	if !stop() {
		<-interrupted
		err = ctx.Err()
	}
	h.Sum(sum[:0])
	return sum, index, err
}

// pin begins a read transaction on conn and returns the applied index that it shows.
func (r *SQL) pin(conn *sqlite.Conn) (index uint64, err error) {
	r.mu.Lock() // between two batches
	defer r.mu.Unlock()
	return r.publishedIndex.Load(), conn.Exec("BEGIN; SELECT count(*) FROM sqlite_schema")
}

func hashDatabase(h hash.Hash, conn *sqlite.Conn) error {
	if err := hashQuery(h, conn, "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE tbl_name<>'"+sqlite.MetaTable+"' ORDER BY type, name"); err != nil {
		return err
	}
	for _, pragma := range []string{"PRAGMA user_version", "PRAGMA application_id"} {
		if err := hashQuery(h, conn, pragma); err != nil {
			return err
		}
	}
	tables, err := conn.TextsAsOwner(`SELECT name FROM pragma_table_list WHERE schema='main' AND type IN ('table','shadow') AND name NOT IN ('` + sqlite.MetaTable + `','sqlite_schema') ORDER BY name`)
	if err != nil {
		return err
	}
	for _, table := range tables {
		if err := hashTable(h, conn, table); err != nil {
			return err
		}
	}
	return nil
}

// hashTable adds the stored columns of a table's rows. VIRTUAL columns are left out: to
// compute them may fail, and may need functions that this node lacks.
func hashTable(h hash.Hash, conn *sqlite.Conn, table string) error {
	const columns = "(SELECT name, hidden FROM pragma_table_xinfo(%))"
	of := func(query string) ([]string, error) {
		return conn.TextsAsOwner(strings.Replace(query+columns, "%", quote(table, `'`), 1))
	}
	names, err := of("SELECT lower(name) FROM ")
	if err != nil {
		return err
	}
	stored, err := of("SELECT group_concat('\"'||replace(name,'\"','\"\"')||'\"') FILTER (WHERE hidden<>2) FROM ")
	if err != nil {
		return err
	}
	h.Write([]byte(table))
	// NOT INDEXED reads the rows in the order of the table's own tree.
	from := stored[0] + " FROM " + quote(table, `"`) + " NOT INDEXED"
	if rowid := rowidName(names); rowid != "" {
		s, _, err := conn.Prepare("SELECT "+rowid+from, false)
		if err == nil {
			s.Close()
			from = rowid + from
		} // otherwise it is a WITHOUT ROWID table
	}
	return hashQuery(h, conn, "SELECT "+from)
}

// rowidName returns a name for the rowid that is not a column's, followed by a comma.
func rowidName(columns []string) string {
next:
	for _, name := range []string{"rowid", "_rowid_", "oid"} {
		for _, c := range columns {
			if c == name {
				continue next
			}
		}
		return name + ", "
	}
	return ""
}

func quote(name, with string) string {
	return with + strings.ReplaceAll(name, with, with+with) + with
}

// hashQuery adds the rows of a query.
func hashQuery(h hash.Hash, conn *sqlite.Conn, sql string) error {
	s, _, err := conn.Prepare(sql, false)
	if err != nil {
		return err
	}
	defer s.Close()
	var b []byte
	for n := s.ColumnCount(); ; {
		row, err := s.Step()
		if err != nil || !row {
			return err
		}
		for i := range n {
			b = append(b[:0], byte(s.Kind(i)))
			switch wire.Kind(b[0]) {
			case wire.Integer:
				b = binary.LittleEndian.AppendUint64(b, uint64(s.Int(i)))
			case wire.Real:
				b = binary.LittleEndian.AppendUint64(b, wire.RealValue(s.Float(i)).Num)
			case wire.Text, wire.Blob:
				data := s.Bytes(i)
				b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
				b = append(b, data...)
			}
			h.Write(b)
		}
	}
}
