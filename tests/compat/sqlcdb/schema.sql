CREATE TABLE authors (
  id      INTEGER PRIMARY KEY,
  name    TEXT NOT NULL UNIQUE,
  bio     TEXT,
  active  BOOLEAN NOT NULL DEFAULT TRUE,
  rating  REAL NOT NULL DEFAULT 0,
  photo   BLOB,
  tags    JSON NOT NULL DEFAULT '[]',
  born    DATETIME NOT NULL,
  died    DATETIME
);

CREATE TABLE books (
  id        INTEGER PRIMARY KEY,
  author_id INTEGER NOT NULL REFERENCES authors(id) ON DELETE CASCADE,
  title     TEXT NOT NULL,
  UNIQUE (author_id, title)
);

CREATE VIEW shelves AS
SELECT authors.name, count(books.id) AS books
FROM authors LEFT JOIN books ON books.author_id = authors.id
GROUP BY authors.id;
