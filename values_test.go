package hiqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hiqlite/hiqlite/internal/testrun"
)

// The tests of this file pass arguments and scan values of all types.

// Each column has a scan type, into which its value can be scanned, even if it is NULL.
// It has one without rows, too.
func TestScanTypesAreNeverNil(t *testing.T) {
	t.Parallel()
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		mustExec(t, db, "CREATE TABLE t(i INTEGER, big BIGINT, r REAL, d DECIMAL(10,2), s VARCHAR(9), b BLOB, y BOOLEAN, dt DATETIME, tz TIMESTAMP WITH TIME ZONE, j JSON, n, ti TIME)")
		mustExec(t, db, "INSERT INTO t VALUES(1, 2, 1.5, 2.5, 'x', x'00', 1, 5, '2024-02-03 04:05:06', '{}', NULL, 7)")
		mustExec(t, db, "INSERT INTO t DEFAULT VALUES")
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
						t.Errorf("%s: the driver claims to know whether column %d can be NULL", query, i)
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

// A named argument that the statement does not use is ignored. A positional argument
// that it does not use is an error, which names the argument.
func TestSurplusArguments(t *testing.T) {
	eachSize(t, func(t *testing.T, c *testCluster) {
		db := c.DB(c.Len() - 1)
		mustExec(t, db, "CREATE TABLE t(a, b)")
		a, b, x := sql.Named("a", 1), sql.Named("b", 2), sql.Named("x", 3)
		check := func(q querier) {
			for _, args := range [][]any{{a, b, x}, {x, a, b}, {a, x, b, sql.Named("y", 4)}} {
				mustExec(t, q, "INSERT INTO t VALUES(:a, :b)", args...)
				mustExec(t, q, "INSERT INTO t VALUES(:a, 0); UPDATE t SET b=:b WHERE a=:a", args...)
				if n := queryValue[int](t, q, "SELECT :a+:b", args...); n != 3 {
					t.Errorf("a read: %d", n)
				}
				if n := queryValue[int](t, q, "SELECT :a; SELECT :b", args...); n == 0 {
					t.Errorf("a script that reads: %d", n)
				}
			}
			for _, text := range []string{"INSERT INTO t VALUES(:a, ?)", "SELECT :a, ?"} {
				if _, err := q.ExecContext(testrun.Context(t), text, a, 2, 3); err == nil || !strings.Contains(err.Error(), "argument 3") {
					t.Errorf("%s: %v", text, err)
				}
			}
		}
		check(db)
		tx := mustBegin(t, db)
		check(tx)
		mustCommit(t, tx)
		if n := queryValue[int](t, db, "SELECT count(*) FROM t WHERE a=1 AND b=2"); n != 12 {
			t.Errorf("%d rows, want 12", n)
		}
		c.WaitEqual()
	})
}

// everyArgument returns arguments of all types that a program may pass, and of some that
// are refused.
func everyArgument() []any {
	zone := time.FixedZone("XYZ", -(3*3600 + 1800))
	return []any{
		nil, 0, int64(math.MaxInt64), int64(math.MinInt64), int8(-3), uint32(math.MaxUint32), uint64(math.MaxInt64), uint64(math.MaxUint64),
		0.0, math.Copysign(0, -1), 1.5, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64, float32(0.1), 1e15, 9007199254740993.0,
		"", "text", "it's", "nul\x00inside", "\xff\xfe invalid", "üñí 世界 🙂", strings.Repeat("x", 5000), "12", "1.0",
		[]byte(nil), []byte("bytes"), []byte{0, 1, 0xff}, true, false,
		sql.NullString{}, sql.NullString{String: "s", Valid: true}, sql.NullInt64{}, sql.NullInt64{Int64: 4, Valid: true}, sql.NullFloat64{Float64: 4, Valid: true},
		sql.NullBool{Bool: true, Valid: true}, sql.NullTime{}, sql.NullTime{Time: time.Unix(7, 0).UTC(), Valid: true}, sql.Null[string]{V: "n", Valid: true}, sql.RawBytes("raw"),
		new(int), (*int)(nil), fmt.Stringer(nil), named("word"),
		time.Unix(0, 0).UTC(), time.Date(2024, 2, 29, 23, 59, 59, 123456789, time.UTC), time.Date(2024, 7, 1, 12, 0, 0, 0, zone), time.Date(1969, 12, 31, 1, 2, 3, 4000000, time.UTC),
		time.Time{}, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2001, 1, 1, 0, 0, 0, 0, time.Local),
		struct{}{}, []int{1}, make(chan int), map[string]int{}, complex(1, 1), [2]byte{1, 2},
	}
}

type named string

func TestArgumentsOfAllKinds(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			p := newPair(t, "")
			p.same(w, text("CREATE TABLE t(id INTEGER PRIMARY KEY, plain, i INT, r REAL, tx TEXT, b BLOB, n NUMERIC, d DATE, v VARCHAR(10), bo BOOLEAN)"))
			for _, v := range everyArgument() {
				p.same(w, text("INSERT INTO t(plain,i,r,tx,b,n,d,v,bo) VALUES(?1,?1,?1,?1,?1,?1,?1,?1,?1)", v))
				p.same(w, text("INSERT INTO t(plain,i,r,tx,b,n,d,v,bo) VALUES(?1,?1,?1,?1,?1,?1,?1,?1,?1) RETURNING *, typeof(plain)", v))
				p.same(w, text("SELECT ?, typeof(?1), ?1 IS NULL, length(?1)", v))
			}
			p.same(way{"", describeQuery}, text("SELECT * FROM t"))
			p.same(way{"", describeQuery}, text("SELECT typeof(plain), typeof(i), typeof(r), typeof(tx), typeof(n), hex(tx), quote(b), max(d), d||'' FROM t GROUP BY id"))
		})
	}
}

func TestNamedParameters(t *testing.T) {
	a, b := sql.Named("a", 1), sql.Named("b", "two")
	eachWay(t, "", []step{
		text("SELECT :a, @b", a, b), text("SELECT $b, :a, $a", a, b), text("SELECT ?1, ?2, ?1", "x", "y"), text("SELECT $1, $2, $1", "x", "y"),
		text("SELECT ?2, ?", 1, 2, 3), text("SELECT ?, ?2, :a", 5, 6, a),
		text("SELECT :a"), text("SELECT :nope", a), text("SELECT ?"), text("SELECT ?, ?", 1), text("SELECT ?3", 1, 2), text("SELECT ?1, ?3", 1, 2, 3),
		text("SELECT :a, ?1", a), text("SELECT @a, :a, $a", a), text("SELECT $a::b", sql.Named("a::b", 3)), text("SELECT ?01", 1), text("SELECT ?0", 1), text("SELECT ?99999999", 1),
		text("CREATE TABLE t(a, b)"), text("INSERT INTO t VALUES(:a, @b) RETURNING a, b", a, b), text("INSERT INTO t(a) VALUES(:a)"),
		text("UPDATE t SET a=$1 WHERE a=:a", "new", a), text("SELECT a, b FROM t WHERE b=@b", b),
	})
}

// database/sql scans the values. What it makes of them depends on the types that the
// driver returns.
func TestScanning(t *testing.T) {
	p := newPair(t, "")
	for _, s := range []step{
		text("CREATE TABLE t(id INTEGER PRIMARY KEY, i INT, r REAL, tx TEXT, b BLOB, d DATETIME, bo BOOLEAN, n)"),
		text("INSERT INTO t VALUES(1, 7, 1.5, 'text', x'62797465', '2024-02-03 04:05:06', 1, NULL)"),
	} {
		p.same(ways[1], s)
	}
	for _, column := range []string{"i", "r", "tx", "b", "d", "bo", "n", "i||''", "count(*)", "d||''"} {
		for name, target := range map[string]func() any{
			"any": func() any { return new(any) }, "string": func() any { return new(string) }, "[]byte": func() any { return new([]byte) }, "RawBytes": func() any { return new(sql.RawBytes) },
			"int": func() any { return new(int) }, "int8": func() any { return new(int8) }, "float64": func() any { return new(float64) }, "bool": func() any { return new(bool) },
			"Time": func() any { return new(time.Time) }, "*string": func() any { return new(*string) }, "NullString": func() any { return new(sql.NullString) },
			"NullInt64": func() any { return new(sql.NullInt64) }, "NullTime": func() any { return new(sql.NullTime) }, "NullBool": func() any { return new(sql.NullBool) },
			"NullFloat64": func() any { return new(sql.NullFloat64) }, "Null[time]": func() any { return new(sql.Null[time.Time]) },
		} {
			for _, query := range []string{"SELECT %s FROM t", "UPDATE t SET id=1 RETURNING %s"} {
				if strings.HasPrefix(query, "UPDATE") && column == "count(*)" {
					continue
				}
				p.same(way{"scan " + name, func(ctx context.Context, c *sql.Conn, s step) string {
					rows, err := c.QueryContext(ctx, s.text)
					if err != nil {
						return describeError(err)
					}
					defer rows.Close()
					v := target()
					rows.Next()
					err = rows.Scan(v)
					switch v := v.(type) {
					case **string:
						if *v != nil {
							return fmt.Sprintf("*%q %v", **v, err)
						}
					case *sql.RawBytes:
						return fmt.Sprintf("%q %v", *v, err)
					}
					return fmt.Sprintf("%+v %v", dereference(v), err)
				}}, text(fmt.Sprintf(query, column)))
			}
		}
	}
}

func dereference(v any) any {
	switch v := v.(type) {
	case *any:
		return describeValue(*v)
	case *string:
		return *v
	case *[]byte:
		return fmt.Sprintf("%#v", *v)
	case *int:
		return *v
	case *int8:
		return *v
	case *float64:
		return *v
	case *bool:
		return *v
	case *time.Time:
		return describeValue(*v)
	case *sql.NullString:
		return *v
	case *sql.NullInt64:
		return *v
	case *sql.NullTime:
		return *v
	case *sql.NullBool:
		return *v
	case *sql.NullFloat64:
		return *v
	case *sql.Null[time.Time]:
		return *v
	}
	return nil
}
