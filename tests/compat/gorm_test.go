package compat

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
)

type company struct {
	ID        uint
	Name      string `gorm:"unique"`
	Employees []employee
}

type employee struct {
	gorm.Model
	Email     string `gorm:"uniqueIndex"`
	Active    bool
	Score     float64
	Nick      *string
	Note      sql.NullString
	Photo     []byte
	Meta      map[string]any `gorm:"serializer:json"`
	Born      time.Time
	Died      *time.Time
	CompanyID *uint
	Company   *company
	Skills    []skill `gorm:"many2many:employee_skills"`
}

type skill struct {
	ID   uint
	Name string `gorm:"uniqueIndex"`
}

var errHook = errors.New("refused by a hook")

func (e *employee) BeforeCreate(*gorm.DB) error {
	if e.Email == "" {
		return errHook
	}
	e.Email = strings.ToLower(e.Email)
	return nil
}

// AfterUpdate writes within the transaction of the update.
func (e *employee) AfterUpdate(tx *gorm.DB) error {
	if e.Nick != nil && *e.Nick == "audited" {
		return tx.Create(&skill{Name: "audit"}).Error
	}
	return nil
}

func TestGorm(t *testing.T) {
	for _, mode := range []struct {
		name   string
		config gorm.Config
	}{
		{"plain", gorm.Config{}},
		{"prepared", gorm.Config{PrepareStmt: true}},
		{"without transactions of its own", gorm.Config{SkipDefaultTransaction: true}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			each(t, func(t *testing.T, d *database) {
				open := func(db *sql.DB) *gorm.DB {
					config := mode.config
					config.Logger, config.TranslateError = logger.Discard, true
					return value[*gorm.DB](t)(gorm.Open(sqlite.Dialector{Conn: db}, &config))
				}
				g := &gormSuite{d: d, db: open(d.home), away: open(d.away[0])}
				t.Run("migrate", g.migrate)
				t.Run("values", g.values)
				t.Run("write", g.write)
				t.Run("associations", g.associations)
				t.Run("transactions", g.transactions)
				t.Run("errors", g.errors)
				t.Run("rows", g.rows)
				t.Run("soft delete", g.softDelete)
				t.Run("cancellation", g.cancellation)
				t.Run("drop", g.drop)
			})
		})
	}
}

type gormSuite struct {
	d        *database
	db, away *gorm.DB
}

func (g *gormSuite) on(t *testing.T) *gorm.DB     { return g.db.WithContext(patient(t)) }
func (g *gormSuite) latest(t *testing.T) *gorm.DB { return g.away.WithContext(latest(t)) }

func (g *gormSuite) migrate(t *testing.T) {
	db := g.on(t)
	must(t, db.AutoMigrate(&company{}, &skill{}, &employee{}))
	must(t, db.AutoMigrate(&company{}, &skill{}, &employee{})) // changes nothing
	m := g.latest(t).Migrator()
	if !m.HasTable(&employee{}) || !m.HasIndex(&employee{}, "Email") || !m.HasColumn(&employee{}, "company_id") || m.HasColumn(&employee{}, "none") {
		t.Error("what was migrated is not there")
	}

	// A column more, a column of another type (which makes a table anew), an index.
	must(t, db.Table("things").AutoMigrate(&struct {
		ID   uint
		Size string
	}{}))
	must(t, db.Exec("INSERT INTO things(size) VALUES('7'), ('8')").Error)
	type thing struct {
		ID    uint
		Size  int    `gorm:"index"`
		Color string `gorm:"default:red"`
	}
	must(t, db.AutoMigrate(&thing{}))
	var got []thing
	must(t, g.latest(t).Order("id").Find(&got).Error)
	same(t, got, []thing{{1, 7, "red"}, {2, 8, "red"}})
	columns, err := g.latest(t).Migrator().ColumnTypes(&thing{})
	must(t, err)
	same(t, columns[1].DatabaseTypeName(), "integer")
	must(t, db.Migrator().DropIndex(&thing{}, "Size"))
	must(t, db.Migrator().RenameColumn(&thing{}, "color", "colour"))
	must(t, db.Migrator().DropColumn(&thing{}, "colour"))
	same(t, g.latest(t).Migrator().HasColumn(&thing{}, "colour"), false)
	g.d.count(t, "things", 2)
	var on int
	must(t, db.Raw("PRAGMA foreign_keys").Scan(&on).Error)
	same(t, on, 1)
	must(t, db.Migrator().DropTable(&thing{}))
}

func (g *gormSuite) values(t *testing.T) {
	full := employee{Email: "Ann@x", Active: true, Score: 1.5, Nick: new("it's"), Note: sql.NullString{String: "n", Valid: true},
		Photo: []byte{0, 1, 255}, Meta: map[string]any{"a": []any{1.0, nil}}, Born: moment, Died: new(moment.AddDate(80, 0, 0))}
	empty := employee{Email: "bob@x", Born: moment}
	for _, e := range []*employee{&full, &empty} {
		must(t, g.on(t).Create(e).Error)
		var got employee
		must(t, g.latest(t).First(&got, e.ID).Error)
		if !got.CreatedAt.Equal(e.CreatedAt) || got.CreatedAt.IsZero() {
			t.Errorf("created at %v, read as %v", e.CreatedAt, got.CreatedAt)
		}
		got.Model, got.Born, got.Died = e.Model, got.Born.UTC(), utc(got.Died)
		same(t, got, *e)
	}
	same(t, full.Email, "ann@x") // by the hook
	same(t, empty.ID, full.ID+1)
	var found employee
	must(t, g.latest(t).Where("born = ? AND active", moment).First(&found).Error)
	same(t, found.ID, full.ID)
}

func (g *gormSuite) write(t *testing.T) {
	db := g.on(t)
	var ann employee
	must(t, db.First(&ann, "email = ?", "ann@x").Error)
	must(t, db.Model(&ann).Updates(map[string]any{"score": gorm.Expr("score + ?", 1), "nick": nil}).Error)
	var got employee
	must(t, g.latest(t).First(&got, ann.ID).Error)
	same(t, got.Score, 2.5)
	same(t, got.Nick, nil)
	got.Note = sql.NullString{}
	must(t, db.Save(&got).Error)
	same(t, db.Model(&employee{}).Where("1 = 1").UpdateColumn("active", false).RowsAffected, 2)

	var returned []employee
	r := db.Model(&returned).Clauses(clause.Returning{Columns: []clause.Column{{Name: "email"}}}).Where("score > 1").Update("score", 3)
	must(t, r.Error)
	same(t, len(returned), 1)
	same(t, returned[0].Email, "ann@x")

	many := make([]skill, 250)
	for i := range many {
		many[i].Name = "skill " + string(rune('A'+i))
	}
	must(t, db.CreateInBatches(&many, 100).Error)
	same(t, many[249].ID, many[0].ID+249)
	batches := 0
	var batch []skill
	must(t, db.FindInBatches(&batch, 100, func(tx *gorm.DB, n int) error {
		batches = n
		return tx.Model(&batch).Update("name", gorm.Expr("name || '!'")).Error
	}).Error)
	same(t, batches, 3)
	g.d.count(t, "skills WHERE name LIKE '%!'", 250)
	must(t, db.Where("1 = 1").Delete(&skill{}).Error)

	var s skill
	must(t, db.FirstOrCreate(&s, skill{Name: "go"}).Error)
	id := s.ID
	s = skill{}
	must(t, db.FirstOrCreate(&s, skill{Name: "go"}).Error)
	same(t, s.ID, id)
	must(t, db.Clauses(clause.OnConflict{DoNothing: true}).Create(&skill{Name: "go"}).Error)
	must(t, db.Clauses(clause.OnConflict{
		Columns: []clause.Column{{Name: "name"}}, DoUpdates: clause.Assignments(map[string]any{"name": "Go"}),
	}).Create(&[]skill{{Name: "go"}, {Name: "sql"}}).Error)
	var names []string
	must(t, g.latest(t).Model(&skill{}).Order("name").Pluck("name", &names).Error)
	same(t, names, []string{"Go", "sql"})
}

func (g *gormSuite) associations(t *testing.T) {
	db := g.on(t)
	c := company{Name: "Acme", Employees: []employee{
		{Email: "c1", Born: moment, Skills: []skill{{Name: "c"}, {Name: "d"}}},
		{Email: "c2", Born: moment},
	}}
	must(t, db.Create(&c).Error)
	must(t, db.Model(&c.Employees[1]).Association("Skills").Append(&c.Employees[0].Skills[0], &skill{Name: "e"}))

	var got company
	must(t, g.latest(t).Preload("Employees", func(tx *gorm.DB) *gorm.DB { return tx.Order("email") }).Preload("Employees.Skills").First(&got, c.ID).Error)
	same(t, len(got.Employees), 2)
	same(t, got.Employees[0].Skills, c.Employees[0].Skills)
	same(t, len(got.Employees[1].Skills), 2)
	var joined employee
	must(t, g.latest(t).Joins("Company").First(&joined, "employees.email = 'c1'").Error)
	same(t, joined.Company.Name, "Acme")

	must(t, db.Model(&c.Employees[0]).Association("Skills").Replace(&skill{Name: "f"}))
	same(t, g.latest(t).Model(&c.Employees[0]).Association("Skills").Count(), 1)
	must(t, db.Model(&c.Employees[0]).Association("Skills").Clear())
	must(t, db.Model(&c.Employees[1]).Association("Skills").Delete(c.Employees[0].Skills))
	g.d.count(t, "employee_skills", 2)
	must(t, db.Select(clause.Associations).Unscoped().Delete(&c.Employees[1]).Error)
	g.d.count(t, "employee_skills", 0)
}

func (g *gormSuite) transactions(t *testing.T) {
	db := g.on(t)
	add := func(tx *gorm.DB, name string) { must(t, tx.Create(&skill{Name: name}).Error) }

	must(t, db.Transaction(func(tx *gorm.DB) error {
		add(tx, "tx outer")
		fails(t, tx.Transaction(func(tx *gorm.DB) error { add(tx, "tx lost"); return errAbandon }), errAbandon)
		must(t, tx.Transaction(func(tx *gorm.DB) error { add(tx, "tx inner"); return nil }))
		if tx.Create(&skill{Name: "tx outer"}).Error == nil {
			t.Error("a name stands twice")
		}
		add(tx, "tx last")
		return nil
	}))
	g.d.count(t, "skills WHERE name IN ('tx outer', 'tx inner', 'tx last')", 3)
	g.d.count(t, "skills WHERE name LIKE 'tx%'", 3)

	fails(t, db.Transaction(func(tx *gorm.DB) error {
		must(t, tx.Where("name LIKE 'tx%'").Delete(&skill{}).Error)
		add(tx, "tx gone")
		var n int64
		must(t, tx.Model(&skill{}).Where("name LIKE 'tx%'").Count(&n).Error)
		same(t, n, 1)
		return errAbandon
	}), errAbandon)
	g.d.count(t, "skills WHERE name LIKE 'tx%'", 3)

	tx := db.Begin()
	add(tx, "sp kept")
	must(t, tx.SavePoint("one").Error)
	add(tx, "sp lost")
	must(t, tx.RollbackTo("one").Error)
	must(t, tx.Commit().Error)
	g.d.count(t, "skills WHERE name LIKE 'sp%'", 1)

	tx = db.Begin()
	add(tx, "sp never")
	must(t, tx.Rollback().Error)
	g.d.count(t, "skills WHERE name LIKE 'sp%'", 1)

	func() {
		defer func() { same(t, recover(), any("panic")) }()
		db.Transaction(func(tx *gorm.DB) error { add(tx, "panicked"); panic("panic") })
	}()
	g.d.count(t, "skills WHERE name = 'panicked'", 0)

	// A migration can be a part of a transaction.
	fails(t, db.Transaction(func(tx *gorm.DB) error {
		type note struct{ ID, Text string }
		must(t, tx.AutoMigrate(&note{}))
		must(t, tx.Create(&note{"1", "x"}).Error)
		return errAbandon
	}), errAbandon)
	same(t, g.latest(t).Migrator().HasTable("notes"), false)
}

func (g *gormSuite) errors(t *testing.T) {
	db := g.on(t)
	err := db.Create(&employee{Email: "ann@x", Born: moment}).Error
	if g.d.replicated() {
		fails(t, err, gorm.ErrDuplicatedKey)
		fails(t, db.Model(&employee{}).Where("email = 'ann@x'").Update("company_id", 99).Error, gorm.ErrForeignKeyViolated)
	} else { // the dialect does not know modernc.org/sqlite's errors
		code(t, err, 2067, "UNIQUE constraint failed: employees.email")
	}
	var e employee
	fails(t, db.First(&e, "email = 'none'").Error, gorm.ErrRecordNotFound)

	// What a hook refuses, or fails at, takes its statement with it.
	fails(t, db.Create(&[]employee{{Email: "hook"}, {}}).Error, errHook)
	g.d.count(t, "employees WHERE email = 'hook'", 0)
	if g.db.SkipDefaultTransaction {
		return
	}
	must(t, db.First(&e, "email = 'ann@x'").Error)
	must(t, db.Model(&e).Update("nick", "audited").Error)
	if db.Model(&e).Updates(employee{Nick: new("audited"), Score: 99}).Error == nil {
		t.Error("audited twice")
	}
	g.d.count(t, "employees WHERE score = 99", 0)
}

func (g *gormSuite) rows(t *testing.T) {
	db := g.on(t)
	rows, err := db.Model(&employee{}).Order("id").Rows()
	must(t, err)
	defer rows.Close()
	var emails []string
	for rows.Next() {
		var e employee
		must(t, db.ScanRows(rows, &e))
		// A query beside the open rows.
		must(t, g.on(t).Raw("SELECT email FROM employees WHERE id = ?", e.ID).Scan(&e.Email).Error)
		emails = append(emails, e.Email)
	}
	must(t, rows.Err())
	same(t, emails, []string{"ann@x", "bob@x", "c1"})
	var result []map[string]any
	must(t, g.latest(t).Table("employees").Select("email, nick").Where("email = ?", "bob@x").Find(&result).Error)
	same(t, result, []map[string]any{{"email": "bob@x", "nick": nil}})
	var n int64
	must(t, db.Clauses(clause.Locking{Strength: "UPDATE"}).Model(&employee{}).Where("email IN ?", []string{"c1", "x"}).Count(&n).Error)
	same(t, n, 1)
}

func (g *gormSuite) softDelete(t *testing.T) {
	db := g.on(t)
	same(t, db.Delete(&employee{}, "email = ?", "bob@x").RowsAffected, 1)
	var e employee
	fails(t, g.latest(t).First(&e, "email = 'bob@x'").Error, gorm.ErrRecordNotFound)
	must(t, g.latest(t).Unscoped().First(&e, "email = 'bob@x'").Error)
	if !e.DeletedAt.Valid {
		t.Error("not marked as deleted")
	}
	must(t, db.Unscoped().Delete(&e).Error)
	g.d.count(t, "employees WHERE email = 'bob@x'", 0)
}

func (g *gormSuite) cancellation(t *testing.T) {
	fails(t, g.db.WithContext(cancelled()).Create(&skill{Name: "cancelled"}).Error, context.Canceled)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	var n int
	fails(t, g.db.WithContext(ctx).Raw(endless).Scan(&n).Error, context.DeadlineExceeded)

	ctx, cancel = context.WithCancel(patient(t))
	err := g.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		must(t, tx.Create(&skill{Name: "cancelled"}).Error)
		cancel()
		return tx.Create(&skill{Name: "too late"}).Error
	})
	fails(t, err, context.Canceled)
	g.d.count(t, "skills WHERE name IN ('cancelled', 'too late')", 0)
}

func (g *gormSuite) drop(t *testing.T) {
	must(t, g.on(t).Migrator().DropTable("employee_skills", &employee{}, &skill{}, &company{}))
	tables, err := g.latest(t).Migrator().GetTables()
	must(t, err)
	for _, name := range tables {
		if !strings.HasPrefix(name, "sqlite_") && !strings.HasPrefix(name, "sqlite_hiqlite") {
			t.Errorf("table %s is still there", name)
		}
	}
}
