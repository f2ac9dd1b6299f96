package statemachine

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"strings"

	"github.com/hiqlite/hiqlite/internal/sqlite"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Hash returns the SHA-256 of everything that SQL can see of the database, the
// schema and rowids included, and the index of the entry it stands for. The
// replicas of a shard have the same hash at the same index. The replica's own
// table is left out: when its rows are written differs from node to node.
func (r *SQL) Hash(ctx context.Context) (sum [sha256.Size]byte, index uint64, err error) {
	reader, err := r.Acquire(ctx)
	if err != nil {
		return sum, 0, err
	}
	defer reader.Release()
	conn := reader.conn
	conn.Owner(true)
	defer conn.Owner(false)
	defer context.AfterFunc(ctx, conn.Interrupt)()
	// The index belongs to the view only if nothing was applied meanwhile.
	for {
		index = r.Applied()
		if err := conn.Exec("BEGIN; SELECT count(*) FROM sqlite_schema"); err != nil {
			return sum, 0, err
		}
		if index == r.Applied() {
			break
		}
		if err := conn.Exec("COMMIT"); err != nil {
			return sum, 0, err
		}
	}
	h := sha256.New()
	err = errors.Join(hashDatabase(h, conn), conn.Exec("COMMIT"))
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	h.Sum(sum[:0])
	return sum, index, err
}

func hashDatabase(h hash.Hash, conn *sqlite.Conn) error {
	if err := hashQuery(h, conn, "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE tbl_name<>'"+sqlite.MetaTable+"' ORDER BY type, name"); err != nil {
		return err
	}
	if err := hashQuery(h, conn, "PRAGMA user_version"); err != nil {
		return err
	}
	tables, err := column(conn, `SELECT name FROM pragma_table_list WHERE schema='main' AND type IN ('table','shadow') AND name NOT IN ('`+sqlite.MetaTable+`','sqlite_schema') ORDER BY name`)
	if err != nil {
		return err
	}
	for _, table := range tables {
		names, err := column(conn, "SELECT lower(name) FROM pragma_table_xinfo("+quote(table, `'`)+")")
		if err != nil {
			return err
		}
		rowid := rowidName(names)
		h.Write([]byte(table))
		sql := "SELECT " + rowid + "* FROM " + quote(table, `"`)
		if rowid != "" && hashQuery(h, conn, sql) == nil {
			continue
		}
		// WITHOUT ROWID
		if err := hashQuery(h, conn, "SELECT * FROM "+quote(table, `"`)); err != nil {
			return err
		}
	}
	return nil
}

// rowidName returns a name of the rowid that no column has taken, with a comma.
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

func column(conn *sqlite.Conn, sql string) ([]string, error) {
	s, _, err := conn.Prepare(sql, false)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var out []string
	for {
		row, err := s.Step()
		if err != nil || !row {
			return out, err
		}
		out = append(out, string(s.Bytes(0)))
	}
}

// hashQuery adds the rows of a query. Nothing is added if it cannot be prepared.
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
