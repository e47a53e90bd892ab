#!/usr/bin/perl
BEGIN { $ENV{PATH} = '/bin:/usr/bin:/opt/x'; $ENV{NEW} = 'new'; delete @ENV{qw(IFS CDPATH ENV BASH_ENV)}; }
print "$ENV{PATH} $ENV{NEW} $ENV{QUERY_STRING}\n", `echo \$PATH \$NEW`;
