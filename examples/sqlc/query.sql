-- name: CreateAuthor :one
INSERT INTO authors (name, bio) VALUES (?, ?) RETURNING *;

-- name: CreateBook :exec
INSERT INTO books (author_id, title, year) VALUES (?, ?, ?);

-- name: Books :many
SELECT books.title, books.year, authors.name AS author
FROM books JOIN authors ON authors.id = books.author_id
ORDER BY books.year;

-- name: DeleteAuthor :execrows
DELETE FROM authors WHERE name = ?;
