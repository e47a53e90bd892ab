<?php
$name = trim($_POST['name'] ?? '');
$info = $_SERVER['PATH_INFO'] ?? '';
?>
<!doctype html>
<html lang="en"><title>PHP</title>
<h1>Hello<?= $name === '' ? '' : ', ' . htmlspecialchars($name) ?>.</h1>
<?php if ($info !== ''): ?>
<p>PATH_INFO is <code><?= htmlspecialchars($info) ?></code>,
SCRIPT_NAME is <code><?= htmlspecialchars($_SERVER['SCRIPT_NAME']) ?></code>.</p>
<?php endif ?>
<form method="post"><label>Name <input name="name"></label> <button>Greet</button></form>
<form method="post" action="/upload.php" enctype="multipart/form-data">
<label>File <input type="file" name="file"></label> <button>Upload</button></form>
</html>
