-- name: CreateAuthor :one
INSERT INTO authors (name, bio, active, rating, photo, tags, born, died)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
RETURNING *;

-- name: CreateBook :execlastid
INSERT INTO books (author_id, title) VALUES (?, ?);

-- name: PutBook :exec
INSERT INTO books (author_id, title) VALUES (?, ?)
ON CONFLICT (author_id, title) DO NOTHING;

-- name: Author :one
SELECT * FROM authors WHERE name = ?;

-- name: Authors :many
SELECT * FROM authors ORDER BY id;

-- name: AuthorsNamed :many
SELECT * FROM authors WHERE name IN (sqlc.slice('names')) ORDER BY name;

-- name: BooksWithAuthors :many
SELECT sqlc.embed(books), sqlc.embed(authors)
FROM books JOIN authors ON authors.id = books.author_id
ORDER BY books.title;

-- name: ChangeAuthor :execresult
UPDATE authors SET
  bio    = coalesce(sqlc.narg('bio'), bio),
  rating = coalesce(sqlc.narg('rating'), rating)
WHERE name = sqlc.arg('name');

-- name: DeleteAuthor :execrows
DELETE FROM authors WHERE name = ?;

-- name: Shelves :many
SELECT * FROM shelves ORDER BY name;
