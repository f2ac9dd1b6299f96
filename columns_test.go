package hiqlite_test

import (
	"database/sql"
	"reflect"
	"testing"
)

// A scan type is one into which the row's value can be scanned, NULL and no row
// included.
func TestScanTypesAreNeverNil(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		run(t, db, "CREATE TABLE t(i INTEGER, big BIGINT, r REAL, d DECIMAL(10,2), s VARCHAR(9), b BLOB, y BOOLEAN, dt DATETIME, tz TIMESTAMP WITH TIME ZONE, j JSON, n, ti TIME)")
		run(t, db, "INSERT INTO t VALUES(1, 2, 1.5, 2.5, 'x', x'00', 1, 5, '2024-02-03 04:05:06', '{}', NULL, 7)")
		run(t, db, "INSERT INTO t DEFAULT VALUES")
		want := []reflect.Type{
			reflect.TypeFor[sql.NullInt64](), reflect.TypeFor[sql.NullInt64](), reflect.TypeFor[sql.NullFloat64](), reflect.TypeFor[sql.NullFloat64](), reflect.TypeFor[sql.NullString](), reflect.TypeFor[[]byte](),
			reflect.TypeFor[sql.NullBool](), reflect.TypeFor[sql.NullTime](), reflect.TypeFor[sql.NullTime](), reflect.TypeFor[any](), reflect.TypeFor[any](), reflect.TypeFor[any](),
		}
		for _, query := range []string{
			"SELECT * FROM t", "SELECT * FROM t WHERE i IS NULL", "SELECT * FROM t WHERE 0", "SELECT NULL, 1, max(dt), max(i)+1.5, NULL||'' FROM t",
			"UPDATE t SET i=i RETURNING *", "INSERT INTO t DEFAULT VALUES RETURNING *", "DELETE FROM t WHERE 0 RETURNING *", "PRAGMA table_info(t)", "PRAGMA busy_timeout", "PRAGMA user_version",
		} {
			rows, err := db.Query(query)
			if err != nil {
				t.Fatalf("%s: %v", query, err)
			}
			check := func() (types []*sql.ColumnType) {
				types, err := rows.ColumnTypes()
				if err != nil {
					t.Fatal(err)
				}
				for i, c := range types {
					if c.ScanType() == nil {
						t.Fatalf("%s: column %d has no scan type", query, i)
					}
					if _, known := c.Nullable(); known {
						t.Errorf("%s: it cannot be known whether column %d can be NULL", query, i)
					}
				}
				return types
			}
			first := check()
			if query == "SELECT * FROM t WHERE i IS NULL" || query == "SELECT * FROM t WHERE 0" || query == "INSERT INTO t DEFAULT VALUES RETURNING *" || query == "DELETE FROM t WHERE 0 RETURNING *" {
				for i := range first {
					if first[i].ScanType() != want[i] {
						t.Errorf("%s: %s is %v, want %v", query, first[i].Name(), first[i].ScanType(), want[i])
					}
				}
			}
			for rows.Next() {
				var dest []any
				for _, c := range check() {
					dest = append(dest, reflect.New(c.ScanType()).Interface())
				}
				if err := rows.Scan(dest...); err != nil {
					t.Errorf("%s: %v", query, err)
				}
			}
			rows.Close()
		}
	})
}
