package compat

import (
	"context"
	"database/sql"
	"slices"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"entgo.io/ent/dialect/sql/schema"
	"entgo.io/ent/schema/field"

	"github.com/hiqlite/hiqlite/tests/compat/entdb"
	"github.com/hiqlite/hiqlite/tests/compat/entdb/migrate"
	"github.com/hiqlite/hiqlite/tests/compat/entdb/person"
)

//go:generate go run entgo.io/ent/cmd/ent@v0.14.5 generate --feature sql/upsert ./entdb/schema

func TestEnt(t *testing.T) {
	each(t, func(t *testing.T, d *database) {
		open := func(db *sql.DB) *entdb.Client {
			return entdb.NewClient(entdb.Driver(entsql.OpenDB(dialect.SQLite, db)))
		}
		e := &entSuite{d: d, db: open(d.home), away: open(d.away[0])}
		must(t, e.db.Schema.Create(patient(t)))
		t.Run("values", e.values)
		t.Run("write", e.write)
		t.Run("edges", e.edges)
		t.Run("transactions", e.transactions)
		t.Run("errors", e.errors)
		t.Run("cancellation", e.cancellation)
		t.Run("migrate", e.migrate)
		t.Run("delete", e.delete)
	})
}

type entSuite struct {
	d        *database
	db, away *entdb.Client
}

func (e *entSuite) add(c *entdb.Client, email string) *entdb.PersonCreate {
	return c.Person.Create().SetEmail(email).SetBorn(moment)
}

func (e *entSuite) values(t *testing.T) {
	full := value[*entdb.Person](t)(e.add(e.db, "ann@x").SetActive(false).SetScore(1.5).SetRole(person.RoleAdmin).SetNick("it's").
		SetPhoto([]byte{0, 255}).SetTags(map[string]any{"a": []any{1.0, nil}}).SetDied(moment.AddDate(80, 0, 0)).Save(patient(t)))
	empty := value[*entdb.Person](t)(e.add(e.db, "bob@x").Save(patient(t)))
	same(t, empty.ID, full.ID+1)
	same(t, empty.Active, true)
	for _, want := range []*entdb.Person{full, empty} {
		got := value[*entdb.Person](t)(e.away.Person.Get(latest(t), want.ID))
		if !got.Born.Equal(want.Born) || !got.Changed.Equal(want.Changed) || (want.Died != nil && !got.Died.Equal(*want.Died)) {
			t.Errorf("times: %v, not %v", got, want)
		}
		same(t, got.Tags, want.Tags)
		same(t, got.Photo, want.Photo)
		same(t, got.Nick, want.Nick)
		same(t, []any{got.Email, got.Active, got.Score, got.Role, got.Died == nil}, []any{want.Email, want.Active, want.Score, want.Role, want.Died == nil})
	}
	same(t, value[int](t)(e.away.Person.Query().Where(person.BornEQ(moment), person.DiedNotNil()).OnlyID(latest(t))), full.ID)
}

func (e *entSuite) write(t *testing.T) {
	ctx := patient(t)
	n := value[int](t)(e.db.Person.Update().Where(person.EmailHasSuffix("@x")).AddScore(1).SetNick("n").Save(ctx))
	same(t, n, 2)
	ann := value[*entdb.Person](t)(e.away.Person.Query().Where(person.Email("ann@x")).Only(latest(t)))
	same(t, ann.Score, 2.5)
	ann = value[*entdb.Person](t)(ann.Update().ClearNick().ClearDied().Save(latest(t)))
	same(t, ann.Nick, nil)

	many := make([]*entdb.PersonCreate, 50)
	for i := range many {
		many[i] = e.add(e.db, "bulk"+string(rune('A'+i)))
	}
	people := value[[]*entdb.Person](t)(e.db.Person.CreateBulk(many...).Save(ctx))
	same(t, people[49].ID, people[0].ID+49)
	same(t, value[int](t)(e.db.Person.Delete().Where(person.EmailHasPrefix("bulk")).Exec(ctx)), 50)

	id := value[int](t)(e.add(e.db, "bob@x").SetNick("again").OnConflictColumns(person.FieldEmail).UpdateNick().ID(ctx))
	bob := value[*entdb.Person](t)(e.away.Person.Get(latest(t), id))
	same(t, *bob.Nick, "again")
	var groups []struct {
		Active bool
		Count  int
		Sum    float64
	}
	must(t, e.away.Person.Query().Order(person.ByActive()).GroupBy(person.FieldActive).
		Aggregate(entdb.Count(), entdb.Sum(person.FieldScore)).Scan(latest(t), &groups))
	same(t, len(groups), 2)
	same(t, groups[0].Sum, 2.5)
}

func (e *entSuite) edges(t *testing.T) {
	ctx := patient(t)
	ann := value[*entdb.Person](t)(e.db.Person.Query().Where(person.Email("ann@x")).Only(ctx))
	bob := value[*entdb.Person](t)(e.db.Person.Query().Where(person.Email("bob@x")).Only(ctx))
	cid := value[*entdb.Person](t)(e.add(e.db, "cid@x").SetParent(ann).AddFriends(ann, bob).Save(ctx))
	must(t, ann.Update().AddChildren(bob).AddFriends(bob).Exec(ctx))

	got := value[*entdb.Person](t)(e.away.Person.Query().Where(person.ID(ann.ID)).
		WithChildren(func(q *entdb.PersonQuery) { q.Order(person.ByEmail()).WithFriends() }).Only(latest(t)))
	same(t, len(got.Edges.Children), 2)
	same(t, len(got.Edges.Children[1].Edges.Friends), 2)
	same(t, value[int](t)(e.away.Person.Query().Where(person.HasParentWith(person.Email("ann@x"))).Count(latest(t))), 2)
	names := value[[]string](t)(e.away.Person.Query().Where(person.Email("cid@x")).QueryFriends().QueryFriends().Unique(true).Order(person.ByEmail()).Select(person.FieldEmail).Strings(latest(t)))
	same(t, names, []string{"ann@x", "bob@x", "cid@x"})

	must(t, cid.Update().RemoveFriends(bob).ClearParent().Exec(ctx))
	e.d.count(t, "person_friends", 4)
	e.d.count(t, "persons WHERE person_children IS NOT NULL", 1)
}

func (e *entSuite) transactions(t *testing.T) {
	ctx := patient(t)
	tx := value[*entdb.Tx](t)(e.db.Tx(ctx))
	value[*entdb.Person](t)(e.add(tx.Client(), "tx1").Save(ctx))
	_, err := e.add(tx.Client(), "tx1").Save(ctx)
	same(t, entdb.IsConstraintError(err), true)
	same(t, value[bool](t)(tx.Person.Query().Where(person.Email("tx1")).Exist(ctx)), true)
	value[*entdb.Person](t)(e.add(tx.Client(), "tx2").Save(ctx))
	must(t, tx.Commit())
	e.d.count(t, "persons WHERE email IN ('tx1', 'tx2')", 2)

	tx = value[*entdb.Tx](t)(e.db.BeginTx(ctx, &sql.TxOptions{}))
	var after []string
	tx.OnRollback(func(next entdb.Rollbacker) entdb.Rollbacker {
		return entdb.RollbackFunc(func(ctx context.Context, tx *entdb.Tx) error {
			after = append(after, "rolled back")
			return next.Rollback(ctx, tx)
		})
	})
	same(t, value[int](t)(tx.Person.Delete().Exec(ctx)), 5)
	same(t, value[int](t)(tx.Person.Query().Count(ctx)), 0)
	must(t, tx.Rollback())
	same(t, after, []string{"rolled back"})
	e.d.count(t, "persons", 5)
	e.d.count(t, "person_friends", 4)
}

func (e *entSuite) errors(t *testing.T) {
	ctx := patient(t)
	_, err := e.add(e.db, "ann@x").Save(ctx)
	if !entdb.IsConstraintError(err) {
		t.Errorf("%v is no ConstraintError", err)
	}
	// The edge cannot be made, and so the person is not.
	_, err = e.add(e.db, "lost").AddFriendIDs(99).Save(ctx)
	if !entdb.IsConstraintError(err) {
		t.Errorf("%v is no ConstraintError", err)
	}
	e.d.count(t, "persons WHERE email = 'lost'", 0)
	_, err = e.away.Person.Get(latest(t), 99)
	if !entdb.IsNotFound(err) {
		t.Errorf("%v is no NotFoundError", err)
	}
}

func (e *entSuite) cancellation(t *testing.T) {
	_, err := e.add(e.db, "cancelled").Save(cancelled())
	fails(t, err, context.Canceled)
	ctx, cancel := context.WithCancel(patient(t))
	tx := value[*entdb.Tx](t)(e.db.Tx(ctx))
	value[*entdb.Person](t)(e.add(tx.Client(), "cancelled").Save(ctx))
	cancel()
	if tx.Commit() == nil {
		t.Error("committed what was cancelled")
	}
	e.d.count(t, "persons WHERE email = 'cancelled'", 0)
}

// migrate changes the table of the people: ent makes it anew. What refers to
// its rows stays, as foreign keys are off meanwhile.
func (e *entSuite) migrate(t *testing.T) {
	must(t, e.away.Schema.Create(latest(t))) // finds nothing to do
	changed := *migrate.PersonsTable
	changed.Columns = nil
	for _, c := range migrate.PersonsColumns {
		c := *c
		switch c.Name {
		case "score":
			c.Type, c.Default = field.TypeInt, 0
		case "photo":
			continue
		}
		changed.Columns = append(changed.Columns, &c)
	}
	changed.AddColumn(&schema.Column{Name: "rank", Type: field.TypeInt, Default: 7})
	apply := func(table *schema.Table) {
		t.Helper()
		m, err := schema.NewMigrate(entsql.OpenDB(dialect.SQLite, e.d.home), schema.WithDropColumn(true), schema.WithDropIndex(true))
		must(t, err)
		must(t, m.Create(patient(t), table, migrate.PersonFriendsTable))
	}
	apply(&changed)
	e.d.count(t, "persons WHERE rank = 7", 5)
	e.d.count(t, "persons WHERE person_children IS NOT NULL", 1)
	e.d.count(t, "person_friends", 4)
	var names []string
	for _, name := range []string{"photo", "rank"} {
		var n int
		must(t, e.d.away[1].QueryRowContext(latest(t), "SELECT count(*) FROM pragma_table_info('persons') WHERE name = ?", name).Scan(&n))
		names = append(names, slices.Repeat([]string{name}, n)...)
	}
	same(t, names, []string{"rank"})
	apply(migrate.PersonsTable)
	must(t, e.away.Schema.Create(latest(t)))
	_, err := e.add(e.db, "lost").SetParentID(99).Save(patient(t))
	if !entdb.IsConstraintError(err) {
		t.Errorf("foreign keys are off: %v", err)
	}
}

func (e *entSuite) delete(t *testing.T) {
	ctx := patient(t)
	must(t, e.db.Person.DeleteOneID(value[int](t)(e.db.Person.Query().Where(person.Email("ann@x")).OnlyID(ctx))).Exec(ctx))
	e.d.count(t, "persons WHERE person_children IS NOT NULL", 0) // SET NULL
	e.d.count(t, "person_friends", 0)                            // CASCADE
	same(t, value[int](t)(e.db.Person.Delete().Exec(ctx)), 4)
	e.d.count(t, "persons", 0)
}
