"""The server behind `wds-serve`: shards over HTTP, as plain files and as the S3 and GCS services show them.

settings    what a server is told to do, as JSON between processes
request     bytes -> Request, strictly; ranges, conditions: what of an object a request asks for
local, remotes, buckets, tree    names -> Blob: a file, or an object of a remote store
s3, sigv4, gcs, pages    listings and errors, as each kind of client wants them
access      who may ask: tokens and signatures
app         Request -> Response; routes under /-/ are entered here
sending, disk, connection    Response -> the socket, without copies
metrics, accesslog, server, processes    one process, and several
"""
