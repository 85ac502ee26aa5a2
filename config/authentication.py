"""The settings that say who may log in, and how it is proven.

What the files say is read in config.access; deciding is the pooler's affair (pooler.access).
"""

from typing import Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from config.fields import Boolean, File, Iterations, Seconds, Text, Users

AuthType = Literal["trust", "any", "plain", "md5", "scram-sha-256", "cert", "peer", "hba", "passthrough"]


class Authentication(BaseModel):
    """Who may log in, and how they prove it."""

    auth_type: AuthType = Field(
        default="scram-sha-256",
        description="How clients log in. trust asks for nothing; nor does any, which serves everybody as the user of "
        "the database's entry, or of the upstream URL. plain asks for the password itself, md5 and scram-sha-256 for "
        "proof of knowing it; md5 is SCRAM where the secret is one of SCRAM. cert takes the name in the client's TLS "
        "certificate; peer, on Unix sockets (unix_socket_dir), that of its system user. hba does what auth_hba_file "
        "says. passthrough lets in whom Postgres lets in: the client's password is tried there. PgBouncer's default is "
        "md5.",
    )
    auth_file: File = Field(
        default=None,
        description='File of users in the form of PgBouncer\'s userlist.txt: "user" "password" on each line. The '
        "password may be an md5 or SCRAM-SHA-256 secret instead. SIGHUP has it read again.",
    )
    users: Users = Field(
        default_factory=dict,
        description="Users and their passwords or secrets: the table [users] of the TOML file, elsewhere a JSON "
        "object. Where a name is known twice, this goes before auth_file, and the upstream URL before both.",
    )
    auth_hba_file: File = Field(
        default=None,
        validate_default=True,  # together with auth_type
        description="File in the form of pg_hba.conf for auth_type hba: who may log in from where, and by which "
        "method. SIGHUP has it read again.",
    )
    auth_ident_file: File = Field(
        default=None,
        description="File in the form of pg_ident.conf: the maps that map= in auth_hba_file names, of names in "
        "certificates and of system users to users. SIGHUP has it read again.",
    )
    auth_user: Text = Field(
        default="",
        description="User who runs auth_query to look up those who are in no list; empty to look nobody up. Its "
        "own password is that of the upstream URL, users or auth_file, in clear, or of server_password_source.",
    )
    auth_query: Text = Field(
        default="SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword END, "
        "rolvaliduntil FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin",
        description="Query that returns the secret of the user $1: alone, or behind the user's name, and then maybe "
        "followed by the time (timestamptz) until which it is valid. No row, or one that begins with NULL, is no such "
        "user; a secret that is NULL or empty lets nobody in by it. It runs with search_path=pg_catalog, so name the "
        "schemas of what is yours.",
    )
    auth_dbname: Text = Field(
        default="",
        description="Database in which auth_query runs: the name of an entry of [databases], or of a database at the "
        "upstream. Empty for the one that a client asks for if it has an entry; else for the upstream URL's, or that "
        "which is named like auth_user.",
    )
    auth_query_max_age: Seconds = Field(
        default=60.0,
        description="How long an answer to auth_query serves while Postgres does not answer; 0 for not at all. While "
        "it does, it is asked again after a second, and after each login that has failed.",
    )
    passthrough_max_age: Seconds = Field(
        default=300.0,
        description="How long a password that Postgres has taken is known without asking again; 0 to ask each time.",
    )
    passthrough_cleartext: Boolean = Field(
        default=False,
        description="Ask for passwords to pass through also where anybody on the network could read them: without "
        "TLS, and from another machine.",
    )
    scram_iterations: Iterations = Field(
        default=4096,
        description="Iterations of the SCRAM secrets made from plain passwords. More makes each login dearer, and "
        "some drivers refuse fewer than 4096.",
    )
    login_failure_delay: Seconds = Field(
        default=1.0,
        description="How long a client that fails to log in waits until it is told so. It doubles with each further "
        "failure from the same address, up to 8 times as long; 0 for no delay.",
    )

    @field_validator("auth_hba_file")
    @classmethod
    def _named_where_it_is_needed(cls, path: File, info: ValidationInfo) -> File:
        if path is None and info.data.get("auth_type") == "hba":
            raise ValueError("is empty, but auth_type is hba: there would be no rule by which to let anybody in")
        return path
