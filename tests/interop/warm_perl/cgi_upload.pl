#!/usr/bin/perl
# type: multipart/form-data; boundary=XX
# body: --XX\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\nline 1\nline 2\r\n--XX\r\nContent-Disposition: form-data; name="t"\r\n\r\ntext\r\n--XX--\r\n
use CGI; my $q = CGI->new;
my $h = $q->upload('f');
print $q->header('text/plain'), $q->param('f'), " ", $q->uploadInfo($h)->{'Content-Type'}, "\n", <$h>, "\n", scalar $q->param('t'), "\n";
open my $f, '>', 'uploaded.txt'; seek $h, 0, 0; print $f join "", <$h>;
