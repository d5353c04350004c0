"""The server behind `wds-serve`: shards over HTTP, as plain files and as the S3 and GCS services show them.

What each module does, from the bottom up:

    settings                       what a server is told to do, as JSON between processes
    request, ranges                bytes -> Request, strictly; what of an object it asks for
    blobs, remotes, buckets, tree  names -> Blob: an open file, or a version of a remote object
    objects                        Request and Blob -> Response
    listing, s3, gcs, pages        listings and errors, as each kind of client wants them
    access, sigv4                  who may ask: tokens and signatures
    front                          the gallery, for browsers: GET / and its files
    app                            Request -> Response; routes under /-/ are entered here
    disk, sending, connection      Response -> the socket, without copies
    metrics, accesslog, server     one process
    processes, worker              several on one port
    links, nginxconf               what the command prints
"""
